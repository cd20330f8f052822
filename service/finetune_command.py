"""`hopstream finetune` on the command line, and its result as a table."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from service.command_line import Json, Overrides, examples
from service.outcome import command, show
from service.store_tables import two_columns

if TYPE_CHECKING:
    from service.finetune import FinetuneReport


def add_finetune_command(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(
        epilog=examples(
            "hopstream finetune run.yaml",
            "hopstream finetune runs/first/run.yaml finetune.labels_per_class=5 --from-scratch",
            "hopstream finetune run.yaml finetune.freeze=true finetune.name=head-only --json",
        )
    )(finetune)


def finetune(
    run_file: Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file of a pretrained run.")],
    overrides: Overrides = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train from fresh weights too, and show both.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a run's encoder, or a head on it alone, on the store's labels; predict every node.

    The best weights by validation accuracy are kept. The same command again goes on, or shows the result.
    """
    from service.finetune import finetune as run_finetuning
    from service.run_file import load_run_file

    with command(as_json=as_json) as progress:
        run = load_run_file(run_file, overrides=overrides or [])
        report = run_finetuning(run, from_scratch=from_scratch, progress=progress)
    show(dataclasses.asdict(report), as_json=as_json, table=lambda: finetune_tables(report))


def finetune_tables(report: "FinetuneReport") -> RenderableType:
    """The data, then a row for each start."""
    drawn = "" if report.labels_per_class is None else f", at most {report.labels_per_class} a class"
    data = {
        "node type": f"{report.node_type}, {len(report.classes)} classes",
        "training nodes": f"{report.train_rows:,}{drawn}",
        "validation, test nodes": f"{report.val_rows:,}, {report.test_rows:,}",
        "encoder": "as it is" if report.frozen else "trained with the head",
        "most frequent class": f"{report.majority_accuracy:.1f} % of the test nodes",
        "result": report.starts[0].out,
    }
    table = Table(title="accuracy and macro-F1 in %", title_justify="left")
    table.add_column("from", style="cyan")
    for name in ("epochs", "best after", "validation", "test", "test macro-F1"):
        table.add_column(name, justify="right")
    for found in report.starts:
        table.add_row(
            found.start,
            f"{found.epochs}{', stopped early' if found.stopped_early else ''}",
            str(found.best_epoch),
            f"{found.val_accuracy:.1f}",
            f"{found.test_accuracy:.1f}",
            f"{found.macro_f1:.1f}",
        )
    return Lines(two_columns(f"{report.run}, step {report.step}: {report.name}", data), table)
