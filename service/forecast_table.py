"""What `hopstream plan` foresees, as tables for people."""

from rich.console import Group
from rich.table import Table

from service.forecast import Forecast
from service.happened import Happened
from service.store_tables import size, two_columns


def forecast_tables(report: Forecast) -> Group:
    """The run, then what it takes under this budget and under others."""
    tables = [_run_table(report)]
    if report.outlooks:
        tables.append(_outlook_table(report))
    if report.happened is not None:
        tables.append(_happened_table(report, report.happened))
    return Group(*tables)


def spread(report: Forecast) -> dict[str, str]:
    """How steps differed in their computing."""
    if report.compute_range is None:
        return {}
    low, high = report.compute_range
    return {"of eight steps in ten, compute": f"{low:.3f} to {high:.3f}"}


def _happened_table(report: Forecast, found: Happened) -> Table:
    table = Table(title=f"{report.run}: what it took, {found.steps:,} steps", title_justify="left")
    table.add_column("", style="cyan")
    table.add_column("now foreseen", justify="right")
    table.add_column("in the run", justify="right")
    for name, seconds in report.stage_seconds.items():
        took = found.stage_seconds.get(name)
        table.add_row(f"seconds a step: {name}", f"{seconds:.3f}", "" if took is None else f"{took:.3f}")
    table.add_row("seconds a step", f"{report.seconds_per_step:.3f}", f"{found.seconds_per_step:.3f}")
    table.add_row("seconds to the first batch", f"{report.startup_seconds:.1f}", f"{found.startup_seconds:.1f}")
    rates = (found.static_hit_rate, found.dynamic_hit_rate, found.disk_bytes_per_step)
    if report.outlooks and None not in rates:
        outlook, (static, dynamic, disk_bytes) = report.outlooks[0], rates
        table.add_row("hits of the static prefix", f"{outlook.static_hit_rate:.1%}", f"{static:.1%}")
        table.add_row("hits of planned slots", f"{outlook.dynamic_hit_rate:.1%}", f"{dynamic:.1%}")
        table.add_row("disk bytes a step", size(outlook.disk_bytes_per_step), size(disk_bytes or 0.0))
    return table


def _run_table(report: Forecast) -> Table:
    growth = " -> ".join(f"{nodes:,.0f}" for nodes in report.nodes_by_hop)
    rows = {
        "nodes of a batch, hop by hop": growth,
        "features of a batch": size(report.batch_bytes),
        "where data is": "all in memory" if report.in_memory else f"in tiers, {size(report.memory_bytes)} of memory",
        **{f"seconds a step: {name}": f"{seconds:.3f}" for name, seconds in report.stage_seconds.items()},
        **spread(report),
        "bottleneck": report.bottleneck,
        "seconds a step": f"{report.seconds_per_step:.3f}",
        "seconds to the first batch": f"{report.startup_seconds:.1f}",
        "steps": f"{report.total_steps:,}",
    }
    if report.one_more_hop is not None:
        more = report.one_more_hop
        rows["nodes of a batch with one hop more"] = f"{more.nodes:,.0f} ({more.times_the_nodes:.1f} times)"
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
