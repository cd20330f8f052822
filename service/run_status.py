"""What is said of a run: of a step by rank 0, of an attempt at its end, and of the run to whoever asks from outside."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from service.health import Health
from storage.errors import DamagedStore
from storage.place import Place

STATE = "state.json"
"""the file of a run's folder that has its `RunStatus`"""

RunState = Literal["new", "running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class StepReport:
    """What rank 0 says after a step; sums over all ranks where a figure is a sum."""

    step: int
    """steps done"""
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    seconds: float
    wait_seconds: float
    """of those, waiting for the batch"""
    seeds: int
    std_mean: float | None = None
    std_min: float | None = None
    effective_rank: float | None = None
    alignment: float | None = None
    uniformity: float | None = None
    probe_step: int | None = None
    """whose weights the validation probe was of that arrived with this step"""
    probe_accuracy: float | None = None
    probe_wait_seconds: float | None = None
    """training waited for it"""


@dataclass(frozen=True)
class StreamSummary:
    """What the planned stream that served rank 0 did in an attempt, for all ranks that it served."""

    batches: int
    """handed out"""
    stage_seconds: dict[str, float]
    """of a batch: how long each stage was at work on it"""
    requests: int
    """feature rows asked for"""
    static_hits: int
    dynamic_hits: int
    disk_bytes: int
    """read from feature files, and packed to local disk and back"""


@dataclass(frozen=True)
class TrainingSummary:
    """What rank 0 did in an attempt; seconds of threads are summed over threads."""

    steps: int
    seconds: float
    loss: float
    num_parameters: int
    seeds: int
    sampled_nodes: int
    sampled_edges: int
    sample_seconds: float
    fetch_seconds: float
    wait_seconds: float
    """the training loop waited for batches"""
    startup_seconds: float
    """of that and of `seconds`, the wait for the first one"""
    host_requests: int
    """feature rows asked of the host tier"""
    host_hits: int
    compute_seconds: float = 0.0
    """of `seconds`, steps at work without waits"""
    stream: StreamSummary | None = None
    """None where everything was in memory"""


@dataclass
class RunStatus:
    """What there is to know about a run from outside."""

    name: str
    state: RunState = "new"
    step: int = 0
    total_steps: int = 0
    world_size: int = 0
    attempts: int = 0
    loss: float | None = None
    seconds: float = 0.0
    skipped_checkpoints: list[str] = field(default_factory=list)
    """damaged checkpoints passed over, each with the reason"""
    summary: TrainingSummary | None = None
    """of the attempt that ended last"""
    stopped_early: bool = False
    probe_accuracy: float | None = None
    """of the validation probe that arrived last"""
    health: Health | None = None
    """of representations, when last looked at"""
    warnings: list[str] = field(default_factory=list)
    """a collapse, with the step that showed it first; a setting that makes results depend on the number of workers"""


def read_status(place: Place) -> RunStatus | None:
    """The status last written in a run's folder; None when there is none."""
    try:
        fields = json.loads(place.read_bytes(STATE))
        summary, health = fields.pop("summary"), fields.pop("health", None)
        return RunStatus(
            **fields,
            summary=None if summary is None else _summary_of(summary),
            health=None if health is None else Health(**health),
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedStore(
            place.full(STATE),
            str(error),
            rule="the run's state is JSON",
            remedy="remove the file; it is rebuilt",
        ) from None


def _summary_of(fields: dict[str, Any]) -> TrainingSummary:
    stream = fields.pop("stream", None)
    return TrainingSummary(**fields, stream=None if stream is None else StreamSummary(**stream))
