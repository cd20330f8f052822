"""`hopstream replay` on the command line, and its result as tables."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from service.command_line import Json, Overrides, RunPath, examples
from service.outcome import FAILED, command, show
from service.store_tables import two_columns

if TYPE_CHECKING:
    from service.replay import ReplayReport, TensorCheck


def add_replay_command(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(
        epilog=examples("hopstream replay runs/first/run.yaml --step 1200", "hopstream replay run.yaml --step 7 --json")
    )(replay)


def replay(
    run_file: RunPath,
    step: Annotated[int, typer.Option(help="Step of the run, from 1, as messages and metrics.jsonl number them.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Do one step of a run again and look at every layer, to see where numbers stop being finite.

    Trains from the checkpoint before the step, writes nothing, and ends with 1 when something is not finite.
    """
    from service.replay import replay as run_replay
    from service.run_file import load_run_file

    with command(as_json=as_json) as progress:
        report = run_replay(load_run_file(run_file, overrides=overrides or []), step=step, progress=progress)
    show(dataclasses.asdict(report), as_json=as_json, table=lambda: replay_tables(report))
    if report.trouble is not None:
        raise typer.Exit(FAILED)


def replay_tables(report: "ReplayReport") -> RenderableType:
    """What the step did, then its outputs and gradients."""
    batches = ", ".join(map(str, report.batches))
    rows = {
        "went on from step": str(report.from_step),
        "epoch, batches": f"{report.epoch}, {batches}",
        "seeds": f"{report.seeds:,}",
        "loss": figure(report.loss),
        "gradient norm": figure(report.grad_norm),
        "not finite": report.trouble or "nothing",
    }
    if report.anomaly is not None:
        rows["anomaly"] = report.anomaly
    return Lines(
        two_columns(f"{report.run}, step {report.step}", rows),
        checks_table("outputs, in the order of the forward pass", report.outputs),
        checks_table("gradients of parameters", report.gradients),
    )


def checks_table(title: str, checks: "list[TensorCheck]") -> Table:
    """A row a tensor."""
    table = Table(title=title, title_justify="left")
    table.add_column("", style="cyan")
    table.add_column("norm", justify="right")
    table.add_column("entries not finite", justify="right")
    for check in checks:
        table.add_row(check.name, figure(check.norm), f"[red]{check.num_not_finite:,}" if check.num_not_finite else "0")
    return table


def figure(value: float | None) -> str:
    """A number for people; None stands for one that is not finite or was not reached."""
    return "-" if value is None else f"{value:.4g}"
