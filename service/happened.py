"""What a run took, in the terms in which `hopstream plan` foresees it: of its last attempt, from its first batch on."""

from dataclasses import dataclass

from service.run_file import RunFile
from service.run_folder import run_place
from service.run_status import StreamSummary, TrainingSummary, read_status


@dataclass(frozen=True)
class Happened:
    """An attempt that ended."""

    steps: int
    seconds_per_step: float
    startup_seconds: float
    """until the first batch was there"""
    stage_seconds: dict[str, float]
    """of a step, each stage beside the others"""
    static_hit_rate: float | None
    """None where everything was in memory"""
    dynamic_hit_rate: float | None
    disk_bytes_per_step: float | None


def happened(run: RunFile, *, batches_per_step: float) -> Happened | None:
    """The last attempt of a run; None where it has not trained any step."""
    status = read_status(run_place(run))
    if status is None or status.summary is None or status.summary.steps == 0:
        return None
    summary = status.summary
    stream = summary.stream
    requests = 0 if stream is None else stream.requests
    return Happened(
        steps=summary.steps,
        seconds_per_step=(summary.seconds - summary.startup_seconds) / summary.steps,
        startup_seconds=summary.startup_seconds,
        stage_seconds={"compute": summary.compute_seconds / summary.steps}
        | stage_seconds(summary, batches_per_step=batches_per_step),
        static_hit_rate=None if stream is None or not requests else stream.static_hits / requests,
        dynamic_hit_rate=None if stream is None or not requests else stream.dynamic_hits / requests,
        disk_bytes_per_step=None if stream is None else disk_bytes(stream, batches_per_step=batches_per_step),
    )


def stage_seconds(summary: TrainingSummary, *, batches_per_step: float) -> dict[str, float]:
    """Of the data path: its threads' work for a step."""
    if summary.stream is None:
        return {"sample": summary.sample_seconds / summary.steps, "fetch": summary.fetch_seconds / summary.steps}
    found = summary.stream.stage_seconds
    # a plan prices reads as a whole: those for packs, and those behind them
    stages = {"sample": found["sample"], "serve": found["serve"], "read": max(found["pack"], found["read"])}
    return {name: seconds * batches_per_step for name, seconds in stages.items()}


def disk_bytes(stream: StreamSummary, *, batches_per_step: float) -> float:
    """Of a step."""
    return stream.disk_bytes / max(1, stream.batches) * batches_per_step
