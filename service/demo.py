"""`hopstream demo`: the whole job on a real graph that every machine has, its own Python code.

    code -> Parquet tables       service.codegraph
    tables -> store              storage.ingest
    store -> encoder             service.pretraining
    encoder -> embeddings        service.results
    embeddings -> accuracies     service.results

Every stage takes the path that a user's own data takes, with the run file `service/recipes/code_graph.yaml`.
A marker in the folder says that a demo made it, and only there are earlier tables, store and run replaced.
"""

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from service.codegraph.build import write_code_graph
from service.evaluation_report import EvaluationReport
from service.pretraining import pretrain
from service.results import EmbeddingResult, embed_run, evaluate_run
from service.run_file import parse_run_text
from service.run_folder import run_place
from service.run_status import RunStatus
from service.store_tables import two_columns
from service.tables import evaluation_table, training_figures
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.progress import Progress

RECIPE = "code_graph.yaml"
MARKER = "hopstream-demo.json"


@dataclass(frozen=True)
class DemoReport:
    """What the demo did; seconds by stage."""

    out: str
    num_nodes: dict[str, int]
    num_edges: dict[str, int]
    num_files: int
    skipped_files: dict[str, int]
    seconds: dict[str, float]
    training: RunStatus
    embedding: EmbeddingResult
    evaluation: EvaluationReport


def run_demo(out: str, *, roots: Sequence[Path] | None = None, progress: Progress) -> DemoReport:
    """Run every stage into the folder `out`.

    Args:
        out: a new or empty folder, or an earlier demo's, whose tables, store and run are replaced.
        roots: import roots of the code, by default those of this interpreter.

    Raises BadInput for a folder that holds something else.
    """
    place = Place(out)
    refuse_occupied(place)
    text = files("service").joinpath("recipes", RECIPE).read_text(encoding="utf-8")
    run = parse_run_text(
        text,
        place=RECIPE,
        overrides=[f"run.storage={place.full('runs')}", f"data.store={place.full('store')}"],
    )
    place.write_bytes(MARKER, b'{"made_by": "hopstream demo"}\n')
    for name in ("tables", "store"):
        place.remove(name)
    run_place(run).remove("")
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(stage: str) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[stage] = round(now - began, 1)
        began = now

    graph = write_code_graph(place.full("tables"), roots=roots, num_processes=os.cpu_count() or 1, progress=progress)
    lap("code graph")
    settings = IngestSettings(nodes=graph.nodes, edges=graph.edges, undirected=True)
    ingest(settings, out=place.full("store"), progress=progress)
    lap("ingest")
    place.write_bytes("run.yaml", run.to_yaml().encode())
    training = pretrain(run, progress=progress)
    lap("pretrain")
    embedding = embed_run(run, store_url=None, out=None, progress=progress)
    lap("embed")
    evaluation = evaluate_run(run, embeddings=None, progress=progress)
    lap("evaluate")
    return DemoReport(
        out=out,
        num_nodes=graph.num_nodes,
        num_edges=graph.num_edges,
        num_files=graph.num_files,
        skipped_files=graph.skipped_files,
        seconds=seconds,
        training=training,
        embedding=embedding,
        evaluation=evaluation,
    )


def refuse_occupied(place: Place) -> None:
    """Raise BadInput unless `place` is new, empty or made by a demo."""
    names = place.names()
    if names and MARKER not in names:
        raise BadInput(
            place.url,
            f"it already holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}",
            rule=f"the demo goes to a new or empty folder, or replaces a demo's, which holds {MARKER}",
            remedy="name another folder with --out",
        )


def demo_summary(report: DemoReport) -> Lines:
    """The summary table, the accuracies and the commands for the user's own data."""
    rows: dict[str, Any] = {f"nodes {name}": f"{count:,}" for name, count in report.num_nodes.items()}
    rows |= {f"edges {name}": f"{count:,}" for name, count in report.num_edges.items()}
    rows["files parsed"] = f"{report.num_files:,} ({sum(report.skipped_files.values())} skipped)"
    rows |= {f"seconds, {stage}": seconds for stage, seconds in report.seconds.items()}
    rows["seconds in all"] = round(sum(report.seconds.values()), 1)
    rows |= {f"pretrain, {name}": value for name, value in training_figures(report.training).items()}
    rows["embed, nodes a second"] = f"{report.embedding.rows / report.embedding.seconds:,.0f}"
    hits, requests = report.embedding.host_hits, report.embedding.host_requests
    rows["embed, host cache hits"] = f"{hits / max(1, requests):.1%}"
    summary: Table = two_columns(f"hopstream demo in {report.out}", rows)
    return Lines(
        summary, evaluation_table(report.evaluation), Text(own_data_commands(report), no_wrap=True, overflow="ignore")
    )


def own_data_commands(report: DemoReport) -> str:
    """What to type for one's own tables."""
    run = shlex.quote(f"{report.out}/run.yaml")
    return (
        "\nOn your own tables (nodes: id, features, label, split; edges: src, dst):\n"
        "  hopstream ingest --nodes nodes.parquet --edges edges.parquet --undirected --out my-store\n"
        f"  cp {run} my-run.yaml    # then set run.name, run.storage and data.store in it\n"
        "  hopstream pretrain my-run.yaml\n"
        "  hopstream embed my-run.yaml\n"
        "  hopstream evaluate my-run.yaml\n"
        f"The embeddings of this run: {report.embedding.out}"
    )
