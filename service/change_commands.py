"""Commands that change a store: delete, refresh, compact, and gc, which removes what no generation needs."""

from typing import Annotated

import typer

from service.command_line import Json, Memory, Work, Workers, examples, named_tables, options_checked, resources_of
from service.outcome import command, show
from service.store_commands import EXAMPLE_NODE_TYPE, EXAMPLE_RELATION

StoreArgument = Annotated[str, typer.Argument(help="Folder or URL of a store.")]


def add_change_commands(app: typer.Typer) -> None:
    """Add the commands of this module to the `hopstream` command."""
    app.command(
        epilog=examples(
            "hopstream delete store --nodes gone.parquet",
            "hopstream delete store --nodes user=gone-users.parquet --edges user:reads:item=gone-pairs.parquet "
            "--missing ignore",
        )
    )(delete)
    app.command(
        epilog=examples(
            "hopstream refresh store --features new-features.parquet",
            "hopstream refresh s3://bucket/store --features user=users/*.parquet --features item=items.parquet",
        )
    )(refresh)
    app.command(epilog=examples("hopstream compact store", "hopstream compact store --memory 2GiB"))(compact)
    app.command(epilog=examples("hopstream gc store --dry-run", "hopstream gc store --keep 2"))(gc)


def delete(
    store: StoreArgument,
    nodes: Annotated[
        list[str] | None,
        typer.Option(help="Table with column id: TYPE=URL, or URL for the one type 'node'. Repeatable."),
    ] = None,
    edges: Annotated[
        list[str] | None,
        typer.Option(
            help="Table with columns src and dst: SRC:NAME:DST=URL, or URL for the one relation node:to:node. "
            "Repeatable."
        ),
    ] = None,
    missing: Annotated[str, typer.Option(help="Nodes and pairs that are not in the store: refuse or ignore.")] = (
        "refuse"
    ),
    memory: Memory = "4GiB",
    workers: Workers = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Delete nodes with all their edges, and all edges between pairs of nodes, as the store's next generation.

    The edges between a pair go in the relation and in its reverse. Rows of deleted nodes stay until `compact`.
    """
    from service.store_tables import ingest_table
    from storage.delete import DeleteSettings
    from storage.delete import delete as run_delete

    with command(as_json=as_json) as progress:
        with options_checked("delete"):
            settings = DeleteSettings.model_validate(
                {
                    "nodes": named_tables(nodes or [], option="--nodes", default=EXAMPLE_NODE_TYPE),
                    "edges": named_tables(edges or [], option="--edges", default=EXAMPLE_RELATION),
                    "missing": missing,
                }
            )
            resources = resources_of(memory, workers, work)
        generation = run_delete(settings, out=store, resources=resources, progress=progress)
    found = {"store": store, **generation.model_dump(mode="json")}
    show(found, as_json=as_json, table=lambda: ingest_table(store, generation))


def refresh(
    store: StoreArgument,
    features: Annotated[
        list[str],
        typer.Option(
            help="Table with column id and the features: TYPE=URL, or URL for the one type 'node'. Repeatable."
        ),
    ],
    nan: Annotated[
        str | None, typer.Option(help="NaN or infinite features: refuse or zero; default as the store was ingested.")
    ] = None,
    memory: Memory = "4GiB",
    workers: Workers = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Replace the features of the nodes in a table, as the store's next generation."""
    from service.store_tables import ingest_table
    from storage.refresh import RefreshSettings
    from storage.refresh import refresh as run_refresh

    with command(as_json=as_json) as progress:
        with options_checked("refresh"):
            tables = named_tables(features, option="--features", default=EXAMPLE_NODE_TYPE)
            settings = RefreshSettings.model_validate({"features": tables, "nan": nan})
            resources = resources_of(memory, workers, work)
        generation = run_refresh(settings, out=store, resources=resources, progress=progress)
    found = {"store": store, **generation.model_dump(mode="json")}
    show(found, as_json=as_json, table=lambda: ingest_table(store, generation))


def compact(
    store: StoreArgument,
    memory: Memory = "4GiB",
    workers: Workers = None,
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Rewrite a store that grew or lost nodes, hottest first: the bytes of a fresh ingest, as its next generation."""
    from service.store_tables import ingest_table
    from storage.compact import compact as run_compact

    with command(as_json=as_json) as progress:
        with options_checked("compact"):
            resources = resources_of(memory, workers, work)
        generation = run_compact(store, resources=resources, progress=progress)
    found = {"store": store, **generation.model_dump(mode="json")}
    show(found, as_json=as_json, table=lambda: ingest_table(store, generation))


def gc(
    store: StoreArgument,
    keep: Annotated[int, typer.Option(help="Newest generations to keep, the current one among them.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Remove old generations, the files that no kept one names, and what killed writers left.

    Runs that train on a removed generation cannot resume; a reader on the same machine keeps the files it has open.
    """
    from service.store_tables import collected_table
    from storage.collect import collect

    with command(as_json=as_json) as progress:
        found = collect(store, keep=keep, dry_run=dry_run, progress=progress)
    show(found.to_json(), as_json=as_json, table=lambda: collected_table(found))
