"""Small tables, ways to break them, and a case: what is broken and what the message about it must hold."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NAN, INF = float("nan"), float("inf")


def fixed(rows: list[list[float] | None], dtype: pa.DataType | None = None, width: int = 2) -> pa.Array:
    return pa.array(rows, pa.list_(dtype or pa.float32(), width))


def features(*, bad: dict[int, list[Any] | None], dtype: pa.DataType | None = None) -> pa.Array:
    """Four rows of [1, 2], but for the bad ones."""
    return fixed([bad.get(i, [1.0, 2.0]) for i in range(4)], dtype)


def nodes_table(**columns: Any) -> pa.Table:
    return pa.table({"id": [10, 11, 12, 13], **columns})


def edges_table(**columns: Any) -> pa.Table:
    return pa.table({"src": [10, 11, 12], "dst": [11, 12, 13], **columns})


def write(folder: Path, *, nodes: list[pa.Table], edges: list[pa.Table]) -> None:
    for name, tables in (("nodes", nodes), ("edges", edges)):
        (folder / name).mkdir()
        for i, table in enumerate(tables):
            pq.write_table(table, folder / name / f"part{i}.parquet")


Break = Callable[[Path], None]


def truncate(name: str) -> Break:
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def overwrite(name: str, data: bytes) -> Break:
    def write_over(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return write_over


def damage_a_page(folder: Path) -> None:
    """The footer stays whole, so only reading the rows can notice."""
    path = folder / "edges/part0.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)


@dataclass(frozen=True)
class Case:
    """One broken input and what its message must hold."""

    says: tuple[str, ...]
    nodes: list[pa.Table] = field(default_factory=lambda: [nodes_table(features=features(bad={}))])
    edges: list[pa.Table] = field(default_factory=lambda: [edges_table()])
    settings: dict[str, Any] = field(default_factory=dict)
    breaks: Break | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the tables, break them, and return the settings that ingest them."""
        write(folder, nodes=self.nodes, edges=self.edges)
        if self.breaks is not None:
            self.breaks(folder)
        given: dict[str, Any] = {
            "nodes": {"node": "FOLDER/nodes"},
            "edges": {"node:to:node": "FOLDER/edges/*.parquet"},
            **self.settings,
        }
        for tables in ("nodes", "edges"):
            given[tables] = {key: url.replace("FOLDER", str(folder)) for key, url in given[tables].items()}
        return given


GOOD = nodes_table(features=features(bad={}))
MORE = pa.table({"id": [20, 21, 22, 23], "features": features(bad={})})


def in_nodes(*says: str, **columns: Any) -> Case:
    """A case whose node table has these columns beside or in place of its id."""
    return Case(says, nodes=[nodes_table(**columns) if "id" not in columns else pa.table(columns)])


def in_edges(*says: str, **columns: Any) -> Case:
    """A case whose edge table has these columns beside or in place of src and dst."""
    return Case(says, edges=[pa.table({"src": [10, 11, 12], "dst": [11, 12, 13]} | columns)])


def in_second_file(*says: str, **columns: Any) -> Case:
    """A case whose second node file has these columns."""
    return Case(says, nodes=[GOOD, pa.table({"id": [20, 21, 22, 23]} | columns)])


def asked(case: Case, **settings: Any) -> Case:
    """The case under other settings."""
    return replace(case, settings=settings)


def broken(*says: str, breaks: Break, edge_files: int = 1) -> Case:
    """A case whose files are good until `breaks` has been there."""
    return Case((*says, "whole Parquet", "write the file again"), edges=[edges_table()] * edge_files, breaks=breaks)
