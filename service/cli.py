"""The `hopstream` command: reads its arguments, hands them to the module that does the work, shows the result.

Modules that need torch are imported inside the commands, so that `--help` answers at once.
"""

import dataclasses
import re
from typing import Annotated

import typer

from service.outcome import FAILED, command, show
from service.process import prepare_process
from storage.errors import BadInput

app = typer.Typer(
    name="hopstream",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Self-supervised pretraining of graph neural networks on graphs larger than memory.\n\n"
    "Order of use: **ingest** tables into a store, **inspect** it, **pretrain** by a run file, **embed**, "
    "**evaluate**. `hopstream demo` does all of it on the code of this Python environment.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables and bars.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.field=value]...", help="Override keys of the run file."),
]

EXAMPLE_NODE_TYPE = "node"
EXAMPLE_RELATION = "node:to:node"


def examples(*lines: str) -> str:
    """The epilog of a command's `--help`."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


@app.command(
    epilog=examples(
        "hopstream ingest --nodes nodes.parquet --edges edges.parquet --undirected --out store",
        "hopstream ingest --nodes user=users/*.parquet --nodes item=s3://bucket/items --edges "
        "user:reads:item=reads.parquet --out store",
    )
)
def ingest(
    nodes: Annotated[list[str], typer.Option(help="Node table: TYPE=URL, or URL for the one type 'node'. Repeatable.")],
    edges: Annotated[
        list[str],
        typer.Option(help="Edge table: SRC:NAME:DST=URL, or URL for the one relation node:to:node. Repeatable."),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL of the new store.")],
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
    as_json: Json = False,
) -> None:
    """Turn Parquet node and edge tables into a graph store."""
    from pydantic import ValidationError

    from service.tables import ingest_table
    from storage.ingest import IngestSettings
    from storage.ingest import ingest as run_ingest

    with command(as_json=as_json) as progress:
        try:
            settings = IngestSettings.model_validate(
                {
                    "nodes": named_tables(nodes, option="--nodes", default=EXAMPLE_NODE_TYPE),
                    "edges": named_tables(edges, option="--edges", default=EXAMPLE_RELATION),
                    "undirected": undirected,
                    "dangling": dangling,
                    "nan": nan,
                    "feature_dtype": feature_dtype,
                    "feature_columns": tuple(feature_columns.split(",")) if feature_columns else None,
                    "fanout": tuple(fanout.split(",")),
                }
            )
        except ValidationError as error:
            first = error.errors()[0]
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise BadInput(
                option, str(first["input"]), rule=first["msg"], remedy="see `hopstream ingest --help`"
            ) from None
        generation = run_ingest(settings, out=out, progress=progress)
    show(
        {"store": out, **generation.model_dump(mode="json")},
        as_json=as_json,
        table=lambda: ingest_table(out, generation),
    )


@app.command(
    epilog=examples(
        "hopstream inspect store", "hopstream inspect s3://bucket/store --json", "hopstream inspect store --verify"
    )
)
def inspect(
    store: Annotated[str, typer.Argument(help="Folder or URL of a store.")],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every byte instead, of every generation, and name what is damaged (exit code 1)."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a store holds: types, relations, counts, degrees, sizes, how hot its hottest rows are."""
    from service.inspection import inspect_store
    from service.inspection_tables import inspection_tables, verification_table
    from storage.verify import verify as verify_store

    with command(as_json=as_json) as progress:
        if verify:
            found = verify_store(store, progress=progress)
        else:
            report = inspect_store(store, progress=progress)
    if not verify:
        show(dataclasses.asdict(report), as_json=as_json, table=lambda: inspection_tables(report))
        return
    show(found.to_json(), as_json=as_json, table=lambda: verification_table(found))
    for place in () if as_json else found.bad:
        typer.echo(f"damaged: {store}: {place}")
    if found.bad:
        raise typer.Exit(FAILED)


@app.command(
    epilog=examples(
        "hopstream pretrain run.yaml",
        "hopstream pretrain run.yaml training.epochs=20 run.name=longer",
        "hopstream pretrain run.yaml --workers 2",
    )
)
def pretrain(
    run_file: RunPath,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(help="Overrides workers.count.")] = None,
    as_json: Json = False,
) -> None:
    """Train an encoder without labels. The same command again resumes the run.

    Precedence: defaults < run file < section.field=value < options.
    """
    from service.pretraining import pretrain as run_pretraining
    from service.run_file import load_run_file
    from service.tables import training_table

    with command(as_json=as_json) as progress:
        more = [] if workers is None else [f"workers.count={workers}"]
        run = load_run_file(run_file, overrides=[*(overrides or []), *more])
        status = run_pretraining(run, progress=progress)
    show(dataclasses.asdict(status), as_json=as_json, table=lambda: training_table(run, status))


@app.command(
    epilog=examples(
        "hopstream embed run.yaml",
        "hopstream embed run.yaml --out s3://bucket/embeddings",
        "hopstream embed run.yaml --store other-store --out other-embeddings",
    )
)
def embed(
    run_file: RunPath,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="Where embeddings go; default: the run's folder.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Embed this store, of the same schema, instead of the trained one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Embed every node of a store as Parquet under its own ids, from the run's newest checkpoint."""
    from service.results import embed_run
    from service.run_file import load_run_file
    from service.tables import embedding_table

    with command(as_json=as_json) as progress:
        run = load_run_file(run_file, overrides=overrides or [])
        result = embed_run(run, store_url=store, out=out, progress=progress)
    show(dataclasses.asdict(result), as_json=as_json, table=lambda: embedding_table(result))


@app.command(
    epilog=examples("hopstream evaluate run.yaml", "hopstream evaluate run.yaml --embeddings my-embeddings --json")
)
def evaluate(
    run_file: RunPath,
    overrides: Overrides = None,
    embeddings: Annotated[str | None, typer.Option(help="Folder that `embed` wrote; default: the run's.")] = None,
    as_json: Json = False,
) -> None:
    """Probe embeddings on the store's labels, beside raw-feature, SGC and random-init baselines."""
    from service.results import evaluate_run
    from service.run_file import load_run_file
    from service.tables import evaluation_table

    with command(as_json=as_json) as progress:
        run = load_run_file(run_file, overrides=overrides or [])
        report = evaluate_run(run, embeddings=embeddings, progress=progress)
    show(report.to_json(), as_json=as_json, table=lambda: evaluation_table(report))


@app.command(epilog=examples("hopstream demo", "hopstream demo --out demo --json"))
def demo(
    out: Annotated[str, typer.Option(help="Folder for tables, store, run and embeddings.")] = "build/demo",
    as_json: Json = False,
) -> None:
    """Run the whole job on the code graph of this Python environment: nothing is downloaded or executed."""
    from service.demo import demo_summary, run_demo

    with command(as_json=as_json) as progress:
        report = run_demo(out, progress=progress)
    show(dataclasses.asdict(report), as_json=as_json, table=lambda: demo_summary(report))


def named_tables(options: list[str], *, option: str, default: str) -> dict[str, str]:
    """`NAME=URL` options as a mapping; a bare URL stands for the name `default`."""
    tables: dict[str, str] = {}
    for text in options:
        match = re.match(r"([\w.\-]+(?::[\w.\-]+:[\w.\-]+)?)=(.+)", text)
        name, url = match.groups() if match else (default, text)
        if name in tables:
            raise BadInput(
                option,
                f"{name} twice",
                rule="each type or relation is given once",
                remedy="join several files of one table by a folder or a glob",
            )
        tables[name] = url
    return tables


def main() -> None:
    """Entry point of the console script."""
    prepare_process()
    app()
