"""What an ingest must make of drawn tables: plain lists and sorts, without the code under test.

Either the complaints that the tables deserve, or the rows of every table as a store must hold them.
"""

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.laws.drawn_graphs import SPLITS, Column, Drawn, DrawnTable

STORED = {pa.float32(): "float32", pa.float16(): "float16", pa.uint8(): "uint8", pa.int8(): "int8"}
Row = tuple[int, int, float, int]
"""of an edge: source and target by the rows of their tables, weight, time"""


@dataclass(frozen=True)
class Complaint:
    """A broken rule: the rows that break it, each with the columns in which it may be shown; all rows when None."""

    table: str
    rows: dict[int, set[str]]
    whole_column: str | None = None


@dataclass
class NodeModel:
    """A node table: features [n, dim] as stored, by the rows of the table."""

    columns: dict[str, list[Any]]
    features: NDArray[Any] | None = None
    num_zeroed: int = 0
    scale: tuple[float, ...] | None = None


@dataclass
class Model:
    """A graph as the store must hold it, or what is wrong with it."""

    complaints: list[Complaint] = field(default_factory=list)
    nodes: dict[str, NodeModel] = field(default_factory=dict)
    relations: dict[str, list[Row]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=lambda: {"nodes": {}, "edges": {}})

    def complain(self, table: str, rows: dict[int, set[str]]) -> None:
        if rows:
            self.complaints.append(Complaint(table, rows))


def model_of(drawn: Drawn) -> Model:
    """Read the tables as the documents say."""
    model = Model()
    for name, table in drawn.nodes.items():
        _read_nodes(model, drawn, name, table)
    for name, table in drawn.edges.items():
        _read_edges(model, drawn, name, table)
    touched: dict[str, set[int]] = {name: set() for name in drawn.nodes}
    for name, rows in model.relations.items():
        source, _, target = name.split(":")
        touched[source] |= {u for u, *_ in rows}
        touched[target] |= {v for _, v, *_ in rows}
    for name, table in drawn.nodes.items():
        model.report["nodes"][name] = {
            "rows": table.num_rows,
            "isolated": table.num_rows - len(touched[name]),
            "nan_zeroed": model.nodes[name].num_zeroed,
        }
    return model


def _nulls(model: Model, name: str, table: DrawnTable, columns: list[str]) -> None:
    for column in columns:
        rows = [row for row, value in enumerate(table.columns[column].values) if _has_null(value)]
        model.complain(name, {row: {column} for row in rows})


def _has_null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and None in value)


def _read_nodes(model: Model, drawn: Drawn, name: str, table: DrawnTable) -> None:
    columns: dict[str, list[Any]] = {
        key: table.columns[key].values for key in ("id", "label", "split", "timestamp") if key in table.columns
    }
    model.nodes[name] = NodeModel(columns)
    _nulls(model, name, table, list(columns))
    first_rows: dict[Any, int] = {}
    for row, value in enumerate(columns["id"]):
        first_rows.setdefault(value, row)
    repeats = [row for row, value in enumerate(columns["id"]) if value is not None and first_rows[value] != row]
    model.complain(name, {row: {"id"} for row in repeats})
    for key, is_bad in (("label", lambda value: value < -1), ("split", lambda value: value not in SPLITS)):
        rows = [row for row, value in enumerate(columns.get(key, [])) if value is not None and is_bad(value)]
        model.complain(name, {row: {key} for row in rows})
    names = [key for key in drawn.options["feature_columns"] or () if key in table.columns]
    if not names and "features" in table.columns:
        names = ["features"]
    if names:
        _read_features(model, drawn, name, [table.columns[key] for key in names], names)


def _read_features(model: Model, drawn: Drawn, name: str, columns: list[Column], names: list[str]) -> None:
    wanted, quantize, is_list = drawn.options["feature_dtype"], drawn.options["quantize"], names == ["features"]
    kinds = {column.type.value_type if is_list else column.type for column in columns}
    shared = STORED.get(next(iter(kinds))) if len(kinds) == 1 else None
    if is_list and shared is None and wanted is None and not quantize:
        model.complaints.append(Complaint(name, {}, whole_column="features"))
        return
    before = len(model.complaints)
    table = drawn.nodes[name]
    _nulls(model, name, table, names)
    if is_list:
        rows: list[list[Any]] = columns[0].values
        width = next((len(row) for row in rows if row is not None), 0)
        if width == 0 and any(row is not None for row in rows):
            model.complain(name, {row: {"features"} for row in range(len(rows))})
            return
        other = [row for row, values in enumerate(rows) if values is not None and len(values) != width]
        model.complain(name, {row: {"features"} for row in other})
    else:
        rows = [list(values) for values in zip(*(column.values for column in columns), strict=True)]
    if len(model.complaints) > before:
        return
    dtype = "float32" if quantize else wanted or shared or "float32"
    values = [
        [_stored(_rounded(v, kind), dtype) for v, kind in zip(row, _kinds(columns), strict=False)] for row in rows
    ]
    problems = ["whole"] if drawn.options["nan"] == "zero" else ["finite", "overflow", "whole"]
    for problem in problems:
        found = {
            row: {names[0] if is_list else names[at] for at, (_, bad) in enumerate(marked) if bad == problem}
            for row, marked in enumerate(values)
        }
        model.complain(name, {row: at for row, at in found.items() if at})
    node = model.nodes[name]
    node.num_zeroed = sum(bad in ("finite", "overflow") for row in values for _, bad in row)
    node.features = np.array([[value for value, _ in row] for row in values], dtype=dtype)
    if quantize:
        largest = np.abs(node.features).max(axis=0)
        scale = np.array([np.float32(value) / np.float32(127) for value in largest], dtype=np.float32)
        steps = np.rint(node.features / np.where(scale > 0, scale, np.float32(1)))
        node.features = np.clip(steps, -127, 127).astype(np.int8)
        node.scale = tuple(float(value) for value in scale)


def _kinds(columns: list[Column]) -> list[pa.DataType]:
    if len(columns) == 1 and hasattr(columns[0].type, "value_type"):
        return [columns[0].type.value_type] * 99
    return [column.type for column in columns]


def _rounded(value: Any, kind: pa.DataType) -> float | int:
    """The value as its column holds it."""
    if kind == pa.float16():
        return float(np.float16(value))
    return float(np.float32(value)) if kind == pa.float32() else value


def _stored(value: float | int, dtype: str) -> tuple[Any, str]:
    """A feature value as it is stored, and which rule it breaks."""
    if not np.isfinite(value):
        return 0, "finite"
    if dtype in ("float16", "float32"):
        with np.errstate(over="ignore"):
            found = np.dtype(dtype).type(value)
        return (found, "") if np.isfinite(found) else (0, "overflow")
    bounds = np.iinfo(dtype)
    fits = value == int(value) and bounds.min <= value <= bounds.max
    return (int(value), "") if fits else (0, "whole")


def _read_edges(model: Model, drawn: Drawn, name: str, table: DrawnTable) -> None:
    source, short, target = name.split(":")
    columns = {key: column.values for key, column in table.columns.items() if key != "ignored"}
    _nulls(model, name, table, list(columns))
    row_of = {
        kind: {node: row for row, node in enumerate(model.nodes[kind].columns["id"])} for kind in (source, target)
    }
    unknown = dict[int, set[str]]()
    rows = list[Row]()
    for row in range(table.num_rows):
        ends = {"src": row_of[source].get(columns["src"][row]), "dst": row_of[target].get(columns["dst"][row])}
        if None in ends.values():
            unknown[row] = {key for key, found in ends.items() if found is None}
            continue
        weight = columns["weight"][row] if "weight" in columns else 0.0
        time = columns["timestamp"][row] if "timestamp" in columns else 0
        rows.append((ends["src"], ends["dst"], weight, time))  # type: ignore[arg-type]  # both are known
    present = {
        row: at for row, at in unknown.items() if columns["src"][row] is not None and columns["dst"][row] is not None
    }
    if drawn.options["dangling"] == "refuse":
        model.complain(name, present)
    elif not rows:
        model.complaints.append(Complaint(name, {}, whole_column="src"))
    with np.errstate(over="ignore"):
        written = table.columns.get("weight", Column([], pa.float32()))
        weights = {row: _rounded(w, written.type) for row, w in enumerate(written.values) if w is not None}
        infinite = {row: {"weight"} for row, w in weights.items() if not np.isfinite(np.float32(w))}
    model.complain(name, infinite)
    model.complain(name, {row: {"weight"} for row, w in weights.items() if w < 0})
    if model.complaints:
        return
    rows = [(u, v, float(np.float32(_rounded(w, table.columns["weight"].type))) if "weight" in columns else 0.0, t)
            for u, v, w, t in rows]  # fmt: skip
    back = [(v, u, w, t) for u, v, w, t in rows]
    given = rows
    if drawn.options["undirected"] and source == target:
        given = [row for there, turned in zip(rows, back, strict=True) for row in dict.fromkeys((there, turned))]
    elif drawn.options["undirected"]:
        model.relations[f"{target}:rev_{short}:{source}"] = back
    model.relations[name] = given
    model.report["edges"][name] = {
        "rows": table.num_rows,
        "dangling_dropped": len(unknown),
        "self_loops": sum(u == v for u, v, _, _ in rows) if source == target else 0,
        "reverse_edges_added": len(given) - len(rows) if source == target else len(rows) * drawn.options["undirected"],
        "parallel_edges": sum(count - 1 for count in Counter((u, v) for u, v, _, _ in given).values()),
    }


def exact_hotness(model: Model, fanout: tuple[int, ...]) -> dict[tuple[str, int], Fraction]:
    """Expected accesses of sampling, of every (type, row)."""
    level = {(name, row): Fraction(1) for name, node in model.nodes.items() for row in range(len(node.columns["id"]))}
    total = dict(level)
    for k in fanout:
        reached = dict.fromkeys(level, Fraction(0))
        for name, rows in model.relations.items():
            source, _, target = name.split(":")
            degree = Counter(v for _, v, _, _ in rows)
            for u, v, _, _ in rows:
                share = Fraction(1) if k == -1 else min(Fraction(1), Fraction(k, degree[v]))
                reached[source, u] += level[target, v] * share
        total = {node: total[node] + reached[node] for node in total}
        level = reached
    return total
