"""Results as tables for people."""

from dataclasses import asdict

from rich.table import Table

from service.evaluation_report import ROW_NAMES, EvaluationReport, RowsName
from service.health import Health
from service.results import EmbeddingResult
from service.run_file import RunFile
from service.run_status import RunStatus
from service.store_tables import two_columns


def training_figures(status: RunStatus) -> dict[str, str]:
    """The figures of an attempt that ended."""
    summary = status.summary
    rows = {"state": status.state, "steps": f"{status.step:,} of {status.total_steps:,}"}
    if status.stopped_early:
        rows["steps"] += ", stopped early"
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
        **health_figures(status.health),
    }


def health_figures(health: Health | None) -> dict[str, str]:
    """The figures of representations that are defined."""
    titles = {
        "std_mean": "std of columns, mean",
        "std_min": "std of columns, least",
        "effective_rank": "effective rank",
        "alignment": "alignment",
        "uniformity": "uniformity",
    }
    found = {} if health is None else asdict(health)
    return {titles[name]: f"{value:.3f}" for name, value in found.items() if value is not None}


def training_table(run: RunFile, status: RunStatus) -> Table:
    """How a run ended."""
    rows = training_figures(status)
    for number, reason in enumerate(status.skipped_checkpoints):
        rows[f"damaged checkpoint {number + 1}"] = reason
    for warning in status.warnings:
        rows["warning"] = warning
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
