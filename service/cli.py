"""The `hopstream` command: reads its arguments, hands them to the module that does the work, shows the result.

Modules that need torch are imported inside the commands, so that `--help` answers at once.
"""

import dataclasses
from typing import Annotated

import typer

from service.change_commands import add_change_commands
from service.command_line import Json, Overrides, RunPath, examples
from service.distill_command import add_distill_command
from service.finetune_command import add_finetune_command
from service.holdout_command import add_holdout_command
from service.outcome import FAILED, command, show
from service.process import prepare_process
from service.replay_command import add_replay_command
from service.store_commands import add_store_commands

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

add_store_commands(app)
add_change_commands(app)
add_replay_command(app)
add_holdout_command(app)
add_finetune_command(app)
add_distill_command(app)


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
        "hopstream plan run.yaml", "hopstream plan run.yaml tiers.memory_bytes=4GiB", "hopstream plan run.yaml --json"
    )
)
def plan(run_file: RunPath, overrides: Overrides = None, as_json: Json = False) -> None:
    """Tell what a run will take, before any of it: batches, memory, cache hits, disk, seconds a step, the bottleneck.

    Some real batches are sampled, read and trained on for that; nothing of the run is written. For a run that has
    been done, what happened stands beside it.
    """
    from service.forecast import forecast
    from service.forecast_table import forecast_tables
    from service.run_file import load_run_file

    with command(as_json=as_json) as progress:
        report = forecast(load_run_file(run_file, overrides=overrides or []), progress=progress)
    show(dataclasses.asdict(report), as_json=as_json, table=lambda: forecast_tables(report))


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
    epilog=examples(
        "hopstream evaluate run.yaml",
        "hopstream evaluate run.yaml --embeddings my-embeddings --json",
        "hopstream evaluate run.yaml evaluation.tasks=[probe,knn,few_shot,clustering,picture]",
        "hopstream evaluate run.yaml evaluation.tasks=[link] evaluation.link.edges=split/test.parquet",
    )
)
def evaluate(
    run_file: RunPath,
    overrides: Overrides = None,
    embeddings: Annotated[str | None, typer.Option(help="Folder that `embed` wrote; default: the run's.")] = None,
    as_json: Json = False,
) -> None:
    """Score embeddings beside raw-feature, SGC and random-init baselines.

    A linear probe on the store's labels; by evaluation.tasks also nearest neighbours, few-shot classification,
    clustering, link prediction of held-out edges, and a picture.
    """
    from service.results import evaluate_run
    from service.run_file import load_run_file
    from service.task_tables import evaluation_tables

    with command(as_json=as_json) as progress:
        run = load_run_file(run_file, overrides=overrides or [])
        report = evaluate_run(run, embeddings=embeddings, progress=progress)
    show(report.to_json(), as_json=as_json, table=lambda: evaluation_tables(report))


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


def main() -> None:
    """Entry point of the console script."""
    prepare_process()
    app()
