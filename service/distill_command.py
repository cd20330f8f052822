"""`hopstream distill` on the command line, and its result as a table."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from service.command_line import Json, Overrides, examples
from service.outcome import command, show
from service.store_tables import two_columns

if TYPE_CHECKING:
    from service.distill import DistillReport


def add_distill_command(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(
        epilog=examples(
            "hopstream distill run.yaml",
            "hopstream distill run.yaml distill.num_layers=2 distill.name=small --json",
            "hopstream distill run.yaml distill.target=labels finetune.name=first",
        )
    )(distill)


def distill(
    run_file: Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file of a run that was embedded.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Distil a run's encoder into an MLP that needs no graph: it reads a node's own features.

    It learns the embeddings that `embed` wrote or, with distill.target=labels, the probabilities of a classifier of
    `finetune`. The same command again goes on, or shows the result.
    """
    from service.distill import distill as run_distillation
    from service.run_file import load_run_file

    with command(as_json=as_json) as progress:
        report = run_distillation(load_run_file(run_file, overrides=overrides or []), progress=progress)
    show(dataclasses.asdict(report), as_json=as_json, table=lambda: distill_table(report))


def distill_table(report: "DistillReport") -> Table:
    """What the student learned, and how it does beside its teacher."""
    early = ", stopped early" if report.stopped_early else ""
    rows = {
        "learned": f"{report.target} of node type {report.node_type}",
        "nodes, held out": f"{report.rows:,}, {report.held_out:,}",
        "parameters": f"{report.num_parameters:,}",
        "epochs, best": f"{report.epochs}{early}, {report.best_epoch}",
        f"{report.loss}, held-out nodes": f"{report.held_out_loss:.4f}",
    }
    if report.held_out_agreement is not None:
        rows["same class, held-out nodes"] = f"{report.held_out_agreement:.1f} %"
    if report.scored is not None:
        rows[f"{report.scored.score}, teacher"] = f"{report.scored.teacher:.1f} %"
        rows[f"{report.scored.score}, student"] = f"{report.scored.student:.1f} %"
        if report.scored.raw is not None:
            rows[f"{report.scored.score}, raw features"] = f"{report.scored.raw:.1f} %"
    rows["result"] = report.out
    return two_columns(f"{report.run}, step {report.step}: {report.name}", rows)
