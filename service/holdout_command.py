"""The command that holds edges out for link prediction."""

from typing import Annotated

import typer

from service.command_line import Json, examples, named_tables
from service.outcome import command, show
from service.store_commands import EXAMPLE_RELATION
from storage.errors import BadInput


def add_holdout_command(app: typer.Typer) -> None:
    """Add `hopstream holdout`."""
    app.command(
        epilog=examples(
            "hopstream holdout --edges edges.parquet --undirected --val 0.05 --test 0.10 --out split",
            "hopstream holdout --edges user:reads:item=reads/*.parquet --val 0 --test 0.2 --out split",
        )
    )(holdout)


def holdout(
    edges: Annotated[str, typer.Option(help="Edge table: SRC:NAME:DST=URL, or URL for the one relation node:to:node.")],
    out: Annotated[str, typer.Option(help="Folder or URL for train.parquet, val.parquet and test.parquet.")],
    undirected: Annotated[
        bool, typer.Option("--undirected", help="A pair and its reverse are one, as in ingest --undirected.")
    ] = False,
    val: Annotated[float, typer.Option(help="Share of pairs to choose by.")] = 0.05,
    test: Annotated[float, typer.Option(help="Share of pairs to report.")] = 0.10,
    seed: Annotated[int, typer.Option(help="Names the draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Hold edges out of a table for link prediction, before it is ingested.

    Ingest train.parquet; give test.parquet and val.parquet to `evaluate` as evaluation.link.edges and
    evaluation.link.val_edges. Duplicates of a pair stay together, so nothing that is held out is in the store.
    """
    from service.holdout import hold_out
    from service.store_tables import two_columns
    from storage.schema import Relation

    with command(as_json=as_json) as progress:
        ((name, url),) = named_tables([edges], option="--edges", default=EXAMPLE_RELATION).items()
        if seed < 0:
            raise BadInput("--seed", str(seed), rule="a seed is 0 or more", remedy="give another number")
        report = hold_out(
            url,
            relation=Relation.parse(name),
            undirected=undirected,
            val_share=val,
            test_share=test,
            seed=seed,
            out=out,
            progress=progress,
        )
    rows = {
        "train": f"{report.train_edges:,} edges",
        "val": f"{report.val_edges:,} edges",
        "test": f"{report.test_edges:,} edges",
        "self-loops, in train": f"{report.self_loops:,}",
    }
    show(report.to_json(), as_json=as_json, table=lambda: two_columns(f"{out}, {report.relation}", rows))
