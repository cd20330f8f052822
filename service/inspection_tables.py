"""What `hopstream inspect` found, as tables for people."""

from typing import Any

from rich.console import Group
from rich.table import Table

from service.degrees import DegreeReport
from service.inspection import NodeTypeReport, RelationReport, StoreReport
from service.store_tables import size, two_columns
from storage.verify import Verification

BARS = "▁▂▃▄▅▆▇█"


def inspection_tables(report: StoreReport) -> Group:
    """The store, then each node type, then each relation."""
    return Group(
        _store_table(report),
        *(_node_type_table(kind) for kind in report.node_types),
        *(_relation_table(relation) for relation in report.relations),
    )


def verification_table(found: Verification) -> Table:
    """What was checked and whether all of it is whole."""
    rows: dict[str, Any] = {
        "result": "every page is whole" if found.is_whole else f"damaged in {len(found.bad)} place(s)",
        "generations": ", ".join(map(str, found.generations)) or "none",
        "files": f"{found.num_files:,}",
        "pages": f"{found.num_pages:,}",
        "bytes": size(found.num_bytes),
        "seconds": f"{found.seconds:.1f}",
        "a second": size(found.num_bytes / found.seconds),
    }
    return two_columns(f"{found.store}: verified", rows)


def bars(report: DegreeReport) -> str:
    """A bar for each power of two, the tallest for most nodes, and the degrees at which the bars begin."""
    most = max((each.nodes for each in report.histogram), default=0)
    drawn = "".join(" " if not each.nodes else BARS[(each.nodes * len(BARS) - 1) // most] for each in report.histogram)
    begins = " ".join(str(each.low) for each in report.histogram[:3])
    last = f" ... {report.histogram[-1].low:,}" if len(report.histogram) > 3 else ""
    return f"{drawn}  ({begins}{last})"


def _store_table(report: StoreReport) -> Table:
    rows: dict[str, Any] = {
        "nodes": f"{sum(kind.num_nodes for kind in report.node_types):,}",
        "edges": f"{sum(relation.num_edges for relation in report.relations):,}",
        "generations": ", ".join(map(str, report.generations)),
        "fan-out of the order of rows": ",".join(map(str, report.fanout)),
        "size": size(report.stored_bytes),
    }
    for kind, num_bytes in sorted(report.bytes_by_kind.items(), key=lambda item: -item[1]):
        rows[f"  {kind}"] = size(num_bytes)
    return two_columns(f"{report.store}: format {report.format_version}, generation {report.generation}", rows)


def _node_type_table(kind: NodeTypeReport) -> Table:
    rows: dict[str, Any] = {
        "nodes": f"{kind.num_nodes:,}, {kind.num_isolated:,} isolated"
        + (f", {kind.num_deleted:,} deleted" if kind.num_deleted else ""),
        "ids": kind.id_type,
        "features": _features(kind),
    }
    if kind.labels is not None:
        rows["labels"] = f"{kind.labels['num_classes']:,} classes, {kind.labels['num_labelled']:,} nodes labelled"
    if kind.splits is not None:
        rows["splits"] = ", ".join(f"{name} {count:,}" for name, count in kind.splits.items())
    if kind.time_range is not None:
        rows["times"] = "{} to {}".format(*kind.time_range)
    rows["size"] = size(kind.stored_bytes)
    shares = " / ".join(f"{hot.row_share:.0%}"[:-1] for hot in kind.hotness)
    rows[f"accesses in the hottest {shares} % of rows"] = (
        " / ".join(f"{100 * hot.access_share:.0f}" for hot in kind.hotness) + " %"
    )
    return two_columns(f"nodes {kind.name}", rows)


def _features(kind: NodeTypeReport) -> str:
    if kind.feature_dim is None:
        return "none"
    more = ", quantised" * kind.quantized + ", in your Parquet files" * kind.in_place
    return f"{kind.feature_dim} x {kind.feature_dtype}{more}"


def _relation_table(relation: RelationReport) -> Table:
    rows: dict[str, Any] = {"edges": f"{relation.num_edges:,}" + "".join(f", {name}" for name in relation.columns)}
    if relation.reverse_of is not None:
        own = relation.reverse_of == relation.relation
        rows["reverse of"] = "itself" if own else relation.reverse_of
    for name, count in (("parallel edges", relation.parallel_edges), ("self-loops", relation.self_loops)):
        if count is not None:
            rows[name] = f"{count:,}"
    if relation.time_range is not None:
        rows["times"] = "{} to {}".format(*relation.time_range)
    for name, degrees in (("in-degree", relation.in_degree), ("out-degree", relation.out_degree)):
        rows[f"{name}: min, 25, 50, 75, 90, 99 %, max"] = ", ".join(
            f"{value:,}"
            for value in (
                degrees.min, degrees.p25, degrees.p50, degrees.p75, degrees.p90, degrees.p99, degrees.max,
            )
        )  # fmt: skip
        rows[f"{name}: mean"] = f"{degrees.mean:,.1f}"
        rows[f"{name}: nodes by powers of two"] = bars(degrees)
    rows["size"] = size(relation.stored_bytes)
    return two_columns(f"edges {relation.relation}", rows)
