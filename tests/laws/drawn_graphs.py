"""Small graphs in tables of every accepted form, drawn by hypothesis, now and then with a broken rule."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")
SPLITS = ("train", "val", "test", "none")
TEXTS = ["", "\0", "a\0", "a", "é", "e\u0301", "漢字", "\U0001f600", " ", "0", "00", "\n", "'", "x" * 1000, "x" * 999]
EXTREMES = [0, 1, -1, -(1 << 63), (1 << 63) - 1, (1 << 32) - 1, 1 << 32, (1 << 53) + 1]
PLAIN = [0.0, 1.0, -1.5, 3.0, 0.1, 100.0, -0.0]
"""floats that every float type holds, rounded"""
FLOATS: dict[pa.DataType, list[float]] = {
    pa.float16(): [65504.0, 2.0**-24],
    pa.float32(): [65519.0, 65520.0, 3e38, 1e-45, 254.5, 255.0, 256.0, -128.0],
    pa.float64(): [65519.99, 65520.0, 3.5e38, -1e300, 1e-300, 1 / 3, 127.0],
}
INTEGERS: dict[pa.DataType, list[int]] = {
    pa.int8(): [-128, 0, 1, 127],
    pa.uint8(): [0, 1, 127, 128, 255],
    pa.uint16(): [0, 255, 256, 65519, 65520, 65535],
    pa.int32(): [0, 1, -129, 70000, (1 << 31) - 1],
    pa.bool_(): [False, True],
}
KINDS = [
    "none", "duplicate id", "null", "dangling", "label", "split", "negative weight", "infinite weight", "width",
]  # fmt: skip


@dataclass
class Column:
    """Values as Python knows them, and the type they are written with."""

    values: list[Any]
    type: pa.DataType

    def array(self) -> pa.Array:
        return pa.array([_as_written(value, self.type) for value in self.values], self.type)


def _as_written(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, list):
        return [_as_written(item, kind.value_type) for item in value]
    return np.float16(value) if kind == pa.float16() and value is not None else value


@dataclass
class DrawnTable:
    """Columns, and how they are cut into files and row groups."""

    columns: dict[str, Column]
    cuts: list[int]
    row_group: int

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())).values)

    def bounds(self) -> list[tuple[int, int]]:
        """First row, and the one behind the last, of each file."""
        ends = [0, *sorted(min(cut, self.num_rows) for cut in self.cuts), self.num_rows]
        return list(pairwise(ends))

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        table = pa.table({name: column.array() for name, column in self.columns.items()})
        for number, (start, stop) in enumerate(self.bounds()):
            pq.write_table(
                table.slice(start, stop - start), folder / f"{number}.parquet", row_group_size=self.row_group
            )

    def place(self, row: int) -> tuple[str, int]:
        """File and row in it."""
        for number, (start, stop) in enumerate(self.bounds()):
            if start <= row < stop:
                return f"{number}.parquet", row - start
        raise IndexError(row)


@dataclass
class Drawn:
    """A graph to ingest."""

    nodes: dict[str, DrawnTable]
    edges: dict[str, DrawnTable]
    options: dict[str, Any]
    small_pieces: bool
    num_workers: int

    def write(self, folder: Path) -> dict[str, Any]:
        """The tables as Parquet; returns the settings that read them."""
        for name, table in (self.nodes | self.edges).items():
            table.write(folder / name.replace(":", "-"))
        urls = {name: str(folder / name.replace(":", "-")) for name in self.nodes | self.edges}
        return {
            "nodes": {name: urls[name] for name in self.nodes},
            "edges": {name: urls[name] for name in self.edges},
            **self.options,
        }


@st.composite
def drawn_graphs(draw: st.DrawFn) -> Drawn:
    """One to three node types, one to three relations between them."""
    named = draw(st.none() | st.integers(1, 3).map(lambda dim: tuple(f"x{i}" for i in range(dim))))
    odd_values = draw(st.booleans())
    nodes = {name: draw(_node_tables(named, odd_values)) for name in "abc"[: draw(st.integers(1, 3))]}
    if named and not any("x0" in table.columns for table in nodes.values()):
        named = None
    edges = dict[str, DrawnTable]()
    for number in range(draw(st.integers(1, 3))):
        source, target = (draw(st.sampled_from(sorted(nodes))) for _ in "st")
        edges[f"{source}:r{number}:{target}"] = draw(_edge_tables(nodes[source], nodes[target]))
    quantize = draw(st.integers(0, 5)) == 0
    dtypes = [None, None, "float32", "float32", "float16", "uint8", "int8"]
    drawn = Drawn(
        nodes,
        edges,
        options={
            "undirected": draw(st.booleans()),
            "dangling": draw(st.sampled_from(["refuse", "drop"])),
            "nan": draw(st.sampled_from(["refuse", "zero", "zero"])),
            "quantize": quantize,
            "feature_dtype": draw(st.sampled_from([None, "int8"])) if quantize else draw(st.sampled_from(dtypes)),
            "feature_columns": named,
            "fanout": draw(st.lists(st.sampled_from([-1, 1, 2, 3, 15]), min_size=1, max_size=3).map(tuple)),
            "order": draw(st.sampled_from(["hotness", "hotness", "input"])),
        },
        small_pieces=draw(st.booleans()),
        num_workers=draw(st.sampled_from([1, 2])),
    )
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2)) if draw(st.integers(0, 9)) < 4 else []
    for kind in kinds:
        _break(draw, drawn, kind)
    return drawn


@st.composite
def _tables(draw: st.DrawFn, columns: dict[str, Column]) -> DrawnTable:
    ordered = draw(st.permutations(sorted(columns)))
    cuts = draw(st.lists(st.integers(0, 20), max_size=3))
    return DrawnTable({name: columns[name] for name in ordered}, cuts, row_group=draw(st.integers(1, 7)))


@st.composite
def _node_tables(draw: st.DrawFn, named: tuple[str, ...] | None, odd_values: bool) -> DrawnTable:
    ids = draw(_ids())
    count = len(ids.values)

    def some(strategy: st.SearchStrategy[Any], *kinds: pa.DataType) -> Column:
        return Column(draw(st.lists(strategy, min_size=count, max_size=count)), draw(st.sampled_from(kinds)))

    columns = {"id": ids}
    if draw(st.booleans()):
        columns["label"] = some(st.integers(-1, 9), pa.int64(), pa.int8(), pa.int32())
    if draw(st.booleans()):
        columns["split"] = some(st.sampled_from(SPLITS), pa.string(), pa.dictionary(pa.int8(), pa.string()))
    if draw(st.booleans()):
        columns["timestamp"] = some(st.sampled_from(EXTREMES) | st.integers(-9, 9), pa.int64())
    if draw(st.booleans()):
        columns["ignored"] = some(st.none(), pa.string())
    form = draw(st.sampled_from(["none", "fixed", "list", "large", "named", "named and fixed"]))
    if named and "named" in form:
        for name in named:
            kind = draw(st.sampled_from([*FLOATS, *INTEGERS]))
            columns[name] = some(st.sampled_from(_values(kind, odd_values)), kind)
    if form not in ("none", "named"):
        kind, dim = draw(st.sampled_from([*FLOATS, *(k for k in INTEGERS if k != pa.bool_())])), draw(st.integers(1, 4))
        if draw(st.booleans()):
            kind = pa.float32()
        lists = {"list": pa.list_(kind), "large": pa.large_list(kind)}
        row = st.lists(st.sampled_from(_values(kind, odd_values)), min_size=dim, max_size=dim)
        columns["features"] = some(row, lists.get(form, pa.list_(kind, dim)))
    return draw(_tables(columns))


def _values(kind: pa.DataType, odd: bool) -> list[Any]:
    if kind in INTEGERS:
        return INTEGERS[kind] if odd else INTEGERS[kind][:2]
    return PLAIN * 3 + [*FLOATS[kind], NAN, INF, -INF] if odd else PLAIN


@st.composite
def _ids(draw: st.DrawFn) -> Column:
    kind = draw(st.sampled_from(["dense", "shuffled", "integers", "texts"]))
    count = draw(st.integers(1, 12))
    if kind == "dense":
        return Column(list(range(count)), draw(st.sampled_from([pa.int64(), pa.int32(), pa.uint8()])))
    if kind == "shuffled":
        return Column(draw(st.permutations(range(count))), pa.int64())
    if kind == "integers":
        numbers = st.sampled_from(EXTREMES) | st.integers(-50, 50)
        return Column(draw(st.lists(numbers, min_size=1, max_size=12, unique=True)), pa.int64())
    texts = st.sampled_from(TEXTS) | st.text(max_size=6)
    types = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    return Column(draw(st.lists(texts, min_size=1, max_size=12, unique=True)), draw(st.sampled_from(types)))


@st.composite
def _edge_tables(draw: st.DrawFn, sources: DrawnTable, targets: DrawnTable) -> DrawnTable:
    count = draw(st.integers(1, 30))
    columns = dict[str, Column]()
    for name, table in (("src", sources), ("dst", targets)):
        ids = table.columns["id"]
        ends = draw(st.lists(st.sampled_from(ids.values), min_size=count, max_size=count))
        plain = pa.int64() if pa.types.is_integer(ids.type) else pa.string()
        columns[name] = Column(ends, draw(st.sampled_from([ids.type, plain])))
    if draw(st.booleans()):
        kind = draw(st.sampled_from([pa.float32(), pa.float64(), pa.float16(), pa.int32(), pa.uint8()]))
        weights = [0, 1, 7] if pa.types.is_integer(kind) else [0.0, 0.5, 0.1, 1e-7, 3.0]
        columns["weight"] = Column(draw(st.lists(st.sampled_from(weights), min_size=count, max_size=count)), kind)
    if draw(st.booleans()):
        times = st.integers(-2, 2) | st.sampled_from(EXTREMES)
        columns["timestamp"] = Column(draw(st.lists(times, min_size=count, max_size=count)), pa.int64())
    return draw(_tables(columns))


def _break(draw: st.DrawFn, drawn: Drawn, kind: str) -> None:
    """Break a rule in a table that can break it; nothing happens where none can."""
    sides = {"duplicate id": drawn.nodes, "label": drawn.nodes, "split": drawn.nodes, "width": drawn.nodes}
    tables = sides.get(kind, drawn.nodes | drawn.edges if kind == "null" else drawn.edges)
    table = tables[draw(st.sampled_from(sorted(tables)))]
    rows = draw(st.lists(st.integers(0, table.num_rows - 1), min_size=1, max_size=4))
    columns = table.columns
    if kind == "duplicate id":
        for row in rows:
            columns["id"].values[row] = columns["id"].values[draw(st.integers(0, table.num_rows - 1))]
    elif kind == "null":
        column = columns[draw(st.sampled_from(sorted(columns)))]
        for row in rows:
            inside = isinstance(column.values[row], list) and draw(st.booleans())
            column.values[row] = [None, *column.values[row][1:]] if inside else None
    elif kind == "dangling":
        column = columns[draw(st.sampled_from(["src", "dst"]))]
        for row in rows:
            column.values[row] = 77 if pa.types.is_integer(column.type) else "nobody"
    elif kind == "width" and "features" in columns and not pa.types.is_fixed_size_list(columns["features"].type):
        for row in rows:
            columns["features"].values[row] = [1] * draw(st.integers(0, 5))
    else:
        name = kind.rsplit(maxsplit=1)[-1]
        bad: dict[str, list[Any]] = {
            "label": [-2, -100],
            "split": ["valid", "", "Train"],
            "negative weight": [-1.0, -0.001, -1e-300],
            "infinite weight": [NAN, INF, -INF, 1e39],
        }
        if name in columns and not (name == "weight" and pa.types.is_integer(columns[name].type)):
            for row in rows:
                columns[name].values[row] = draw(st.sampled_from(bad[kind]))
