"""Commands that write stores: from tables to a store."""

import os
from typing import Annotated

import typer

from service.command_line import (
    Json,
    Memory,
    Work,
    Workers,
    examples,
    is_given,
    named_tables,
    options_checked,
    resources_of,
)
from service.outcome import command, show
from service.ray_options import Address, OnRay, chosen_executor

EXAMPLE_NODE_TYPE = "node"
EXAMPLE_RELATION = "node:to:node"


def add_store_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the `hopstream` command."""
    app.command(
        epilog=examples(
            "hopstream ingest --nodes nodes.parquet --edges edges.parquet --undirected --out store",
            "hopstream ingest --nodes user=users/*.parquet --nodes item=s3://bucket/items --edges "
            "user:reads:item=reads.parquet --out store",
            "hopstream ingest --nodes nodes.parquet --edges edges.parquet --memory 2GiB --work /scratch --out store",
            "hopstream ingest --nodes s3://bucket/nodes --edges s3://bucket/edges --ray --address head:6379 "
            "--work /shared/work --out s3://bucket/store",
            "hopstream ingest --append --nodes new-nodes.parquet --edges new-edges.parquet --out store",
        )
    )(ingest)


def ingest(
    context: typer.Context,
    out: Annotated[str, typer.Option(help="Folder or URL of the new store; with --append of the one that grows.")],
    nodes: Annotated[
        list[str] | None, typer.Option(help="Node table: TYPE=URL, or URL for the one type 'node'. Repeatable.")
    ] = None,
    edges: Annotated[
        list[str] | None,
        typer.Option(help="Edge table: SRC:NAME:DST=URL, or URL for the one relation node:to:node. Repeatable."),
    ] = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add new nodes, new edges or both to the store, as its next generation; settings are the store's.",
        ),
    ] = False,
    undirected: Annotated[bool, typer.Option("--undirected", help="Add the reverse of every edge.")] = False,
    dangling: Annotated[str, typer.Option(help="Edges to unknown nodes: refuse or drop.")] = "refuse",
    nan: Annotated[str, typer.Option(help="NaN or infinite features: refuse or zero.")] = "refuse",
    feature_dtype: Annotated[
        str | None,
        typer.Option(help="Store features as float32, float16, uint8 or int8; default as they are."),
    ] = None,
    feature_columns: Annotated[
        str | None, typer.Option(help="Comma-separated numeric columns to use as features.")
    ] = None,
    fanout: Annotated[
        str, typer.Option(help="Fan-out that the order of rows on disk expects, from the seeds outward.")
    ] = "15,10,5",
    features: Annotated[
        str, typer.Option(help="copy features into the store, or leave them in their Parquet files: in-place.")
    ] = "copy",
    quantize: Annotated[
        bool, typer.Option("--quantize", help="Store features as int8 steps of a scale of each column.")
    ] = False,
    order: Annotated[
        str, typer.Option(help="Order of rows on disk: hotness, or input (as the rows stand in the table).")
    ] = "hotness",
    memory: Memory = "4GiB",
    workers: Workers = None,
    work: Work = None,
    ray: OnRay = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Turn Parquet node and edge tables into a graph store, in the memory given.

    Killed or interrupted, the same command goes on behind the last finished stage.
    """
    from service.store_tables import ingest_table
    from storage.append import append as run_append
    from storage.append_settings import AppendSettings
    from storage.ingest import IngestSettings
    from storage.ingest import ingest as run_ingest

    with command(as_json=as_json) as progress:
        with options_checked("ingest"):
            tables = {
                "nodes": named_tables(nodes or [], option="--nodes", default=EXAMPLE_NODE_TYPE),
                "edges": named_tables(edges or [], option="--edges", default=EXAMPLE_RELATION),
            }
            options = {
                "undirected": undirected,
                "dangling": dangling,
                "nan": nan,
                "feature_dtype": feature_dtype,
                "feature_columns": tuple(feature_columns.split(",")) if feature_columns else None,
                "fanout": tuple(fanout.split(",")),
                "features": features,
                "quantize": quantize,
                "order": order,
            }
            if append:
                own = {name: value for name, value in options.items() if is_given(context, name)}
                more = AppendSettings.model_validate({**tables, **own})
            else:
                settings = IngestSettings.model_validate({**tables, **options})
            # tasks on Ray have working folders of their own
            resources = resources_of(memory, workers, work and os.path.abspath(work))
        with chosen_executor(
            ray=ray, address=address, workers=workers, resources=resources, progress=progress
        ) as executor:
            if append:
                generation = run_append(more, out=out, resources=resources, executor=executor, progress=progress)
            else:
                generation = run_ingest(settings, out=out, resources=resources, executor=executor, progress=progress)
    show(
        {"store": out, **generation.model_dump(mode="json")},
        as_json=as_json,
        table=lambda: ingest_table(out, generation),
    )
