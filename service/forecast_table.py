"""What `hopstream plan` foresees, as tables for people."""

from rich.console import Group
from rich.table import Table

from service.forecast import Forecast
from service.store_tables import size, two_columns


def forecast_tables(report: Forecast) -> Group:
    """The run, then what it takes under this budget and under others."""
    tables = [_run_table(report)]
    if report.outlooks:
        tables.append(_outlook_table(report))
    return Group(*tables)


def _run_table(report: Forecast) -> Table:
    growth = " -> ".join(f"{nodes:,.0f}" for nodes in report.nodes_by_hop)
    rows = {
        "nodes of a batch, hop by hop": growth,
        "features of a batch": size(report.batch_bytes),
        "where data is": "all in memory" if report.in_memory else f"in tiers, {size(report.memory_bytes)} of memory",
        **{f"seconds a step: {name}": f"{seconds:.3f}" for name, seconds in report.stage_seconds.items()},
        "bottleneck": report.bottleneck,
        "seconds a step": f"{report.seconds_per_step:.3f}",
        "seconds to the first batch": f"{report.startup_seconds:.1f}",
        "steps": f"{report.total_steps:,}",
    }
    if report.one_more_hop is not None:
        more = report.one_more_hop
        rows["nodes of a batch with one hop more"] = f"{more.nodes:,.0f} ({more.times_the_nodes:.1f} times)"
    if report.measured_seconds_per_step is not None:
        rows["measured seconds a step, in the run"] = f"{report.measured_seconds_per_step:.3f}"
    return two_columns(f"{report.run}: what it will take", rows)


def _outlook_table(report: Forecast) -> Table:
    table = Table(title="memory and disk", title_justify="left")
    table.add_column("", style="cyan")
    for outlook in report.outlooks:
        table.add_column(outlook.change, justify="right")
    lines: list[tuple[str, list[str]]] = [
        (name, [size(outlook.memory[name]) for outlook in report.outlooks]) for name in report.outlooks[0].memory
    ]
    lines += [
        ("topology is", [outlook.topology for outlook in report.outlooks]),
        ("batches of a superbatch", [str(outlook.batches_per_superbatch) for outlook in report.outlooks]),
        ("hits of the static prefix", [f"{outlook.static_hit_rate:.1%}" for outlook in report.outlooks]),
        ("hits of planned slots", [f"{outlook.dynamic_hit_rate:.1%}" for outlook in report.outlooks]),
        ("disk bytes a step", [size(outlook.disk_bytes_per_step) for outlook in report.outlooks]),
        ("seconds of reads a step", [f"{outlook.read_seconds_per_step:.3f}" for outlook in report.outlooks]),
    ]
    for name, cells in lines:
        table.add_row(name, *cells)
    return table
