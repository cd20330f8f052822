"""Results as tables for people."""

from typing import Any

from rich.table import Table

from service.coordinator import RunStatus
from service.evaluation_report import ROW_NAMES, EvaluationReport, RowsName
from service.results import EmbeddingResult
from service.run_file import RunFile
from storage.schema import Generation


def two_columns(title: str, rows: dict[str, Any]) -> Table:
    """A table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def ingest_table(store: str, generation: Generation) -> Table:
    """What ingest wrote."""
    rows: dict[str, Any] = {}
    for kind in generation.node_types:
        features = f", {kind.feature_dim} {kind.feature_dtype}" if kind.feature_dim else ""
        rows[f"nodes {kind.name}"] = f"{kind.num_nodes:,}{features}"
    for info in generation.relations:
        rows[f"edges {info.relation}"] = f"{info.num_edges:,}"
    return two_columns(f"{store}, generation {generation.generation}", rows)


def training_figures(status: RunStatus) -> dict[str, str]:
    """The figures of an attempt that ended."""
    summary = status.summary
    rows = {"state": status.state, "steps": f"{status.step:,} of {status.total_steps:,}"}
    if summary is None or summary.steps == 0:
        return rows
    requests = max(1, summary.host_requests)
    return rows | {
        "loss": f"{summary.loss:.4f}",
        "seconds": f"{summary.seconds:.1f}",
        "seeds a second": f"{summary.seeds / summary.seconds:,.0f}",
        "sampled edges a second": f"{summary.sampled_edges / summary.seconds:,.0f}",
        "waiting for data": f"{summary.wait_seconds / summary.seconds:.1%}",
        "host cache hits": f"{summary.host_hits / requests:.1%}",
        "parameters": f"{summary.num_parameters:,}",
    }


def training_table(run: RunFile, status: RunStatus) -> Table:
    """How a run ended."""
    rows = training_figures(status)
    for number, reason in enumerate(status.skipped_checkpoints):
        rows[f"damaged checkpoint {number + 1}"] = reason
    return two_columns(f"{run.run.name} with {status.world_size} worker(s)", rows)


def embedding_table(result: EmbeddingResult) -> Table:
    """What embedding wrote."""
    return two_columns(
        result.out,
        {
            "nodes": f"{result.rows:,}",
            "columns": result.dim,
            "training steps": result.step,
            "seconds": f"{result.seconds:.1f}",
            "nodes a second": f"{result.rows / result.seconds:,.0f}",
            "host cache hits": f"{result.host_hits / max(1, result.host_requests):.1%}",
        },
    )


ROW_TITLES: dict[RowsName, str] = {
    "trained": "trained",
    "raw": "raw",
    "sgc": "SGC",
    "random_init": "random init",
}


def evaluation_table(report: EvaluationReport) -> Table:
    """Probe accuracies, the trained rows beside the baselines."""
    table = Table(title=f"linear probe, test accuracy in % ({report.run}, step {report.step})", title_justify="left")
    table.add_column("node type", style="cyan")
    table.add_column("classes", justify="right")
    table.add_column("splits")
    for name in ROW_NAMES:
        table.add_column(ROW_TITLES[name], justify="right")
    for kind in report.node_types:
        cells = []
        for result in kind.results:
            deviation = f" ± {result.deviation:.1f}" if kind.num_splits > 1 else ""
            cells.append("-" if result.accuracy is None else f"{result.accuracy:.1f}{deviation}")
        splits = "data's own" if kind.split == "data" else f"{kind.num_splits} random"
        table.add_row(kind.node_type, str(kind.num_classes), splits, *cells)
    return table
