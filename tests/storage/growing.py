"""Tables that grow: a part that is ingested, a part that comes later, and what a store of both holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.append_settings import AppendSettings
from storage.ingest import IngestSettings
from storage.schema import Generation, Relation
from storage.store import Store

DIM = 5
RELATIONS = ("user:follows:user", "user:buys:item", "item:like:item")


@dataclass
class Growing:
    """Whole tables by name; the first `old[name]` rows of each come first."""

    tables: dict[str, pa.Table]
    old: dict[str, int]
    files: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> "Growing":
        """Every table as a folder of two files, which a fresh ingest reads as one."""
        for name, table in self.tables.items():
            where = folder / name.replace(":", "-")
            where.mkdir(parents=True, exist_ok=True)
            for old in where.iterdir():
                old.unlink()
            count = self.old[name]
            pq.write_table(table.slice(0, count), where / "0.parquet", row_group_size=17)
            if count < table.num_rows:
                pq.write_table(table.slice(count), where / "1.parquet", row_group_size=11)
            self.files[name] = str(where)
        return self

    def whole(self, **settings: Any) -> IngestSettings:
        """An ingest of everything."""
        return _settings(self.files, **settings)

    def first(self, **settings: Any) -> IngestSettings:
        """An ingest of the part that comes first."""
        return _settings({name: f"{path}/0.parquet" for name, path in self.files.items()}, **settings)

    def later(self) -> AppendSettings:
        """What is appended."""
        files = {name: f"{path}/1.parquet" for name, path in self.files.items() if Path(f"{path}/1.parquet").exists()}
        return AppendSettings(
            nodes={name: url for name, url in files.items() if ":" not in name},
            edges={name: url for name, url in files.items() if ":" in name},
        )


def _settings(files: dict[str, str], **settings: Any) -> IngestSettings:
    return IngestSettings(
        nodes={name: url for name, url in files.items() if ":" not in name},
        edges={name: url for name, url in files.items() if ":" in name},
        **{"fanout": (3, 2), **settings},
    )


def shop(seed: int = 0, *, users: int = 120, items: int = 90, share: float = 0.9) -> Growing:
    """Users with string ids and every column, items with integer ids; loops, parallel edges, weights and times.

    New edges join old and new nodes in every way; edges that come first join old nodes only.
    """
    rng = np.random.default_rng(seed)
    names = [f"user-{i}" for i in rng.permutation(users)]
    numbers = [int(i) for i in rng.permutation(items) * 7 - 50]
    old = {"user": int(share * users), "item": int(share * items)}
    features = rng.standard_normal((users, DIM)).astype(np.float32)
    tables = {
        "user": pa.table(
            {
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), DIM),
                "id": names,
                "label": pa.array(rng.integers(-1, 4, users), pa.int32()),
                "split": rng.choice(["train", "val", "test", "none"], users).tolist(),
                "timestamp": rng.integers(-5, 5, users),
            }
        ),
        "item": pa.table({"id": numbers}),
    }
    ids: dict[str, list[Any]] = {"user": names, "item": numbers}
    for text, count in zip(RELATIONS, (600, 450, 200), strict=True):
        relation = Relation.parse(text)
        before = int(share * count)
        ends = {}
        for column, end in (("src", relation.source), ("dst", relation.target)):
            known = np.where(np.arange(count) < before, old[end], len(ids[end]))
            rows = (known * rng.random((2, count)).min(axis=0)).astype(np.int64)
            ends[column] = [ids[end][row] for row in rows]
        table = pa.table(ends)
        if relation.name == "follows":
            table = table.append_column("weight", pa.array(rng.integers(0, 5, count) / 4))
            table = table.append_column("timestamp", pa.array(rng.integers(0, 4, count)))
        if relation.name == "like":
            table = table.append_column("weight", pa.array(rng.integers(0, 9, count)))
        tables[text], old[text] = table, before
    return Growing(tables, old)


def checksums(generation: Generation) -> dict[str, tuple[int, str]]:
    """Size and checksum of every data file by type or relation and kind, whatever the number of its segment."""
    found = {}
    for info in generation.files():
        folder, _, name = info.name.rpartition("/")
        found[f"{folder}/{name.partition('.')[0]}"] = (info.num_bytes, info.sums_xxh64)
    assert len(found) == len(generation.files()), "one segment each"
    return found


def all_bytes(store: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


Edge = tuple[Any, Any, float, int]
"""source id, target id, weight, time"""


def expected_edges(growing: Growing, *, undirected: bool) -> dict[str, list[Edge]]:
    """Edges of every stored relation by the words of the design, in input order."""
    found = dict[str, list[Edge]]()
    for text in RELATIONS:
        columns, relation = growing.tables[text].to_pydict(), Relation.parse(text)
        none = [0] * growing.tables[text].num_rows
        weights = [float(np.float32(w)) for w in columns.get("weight", none)]
        rows = list(zip(columns["src"], columns["dst"], weights, columns.get("timestamp", none), strict=True))
        back = [(v, u, w, t) for u, v, w, t in rows]
        if not undirected:
            found[text] = rows
        elif relation.source == relation.target:
            pairs = zip(rows, back, strict=True)
            found[text] = [edge for there, turned in pairs for edge in dict.fromkeys((there, turned))]
        else:
            found[text] = rows
            found[f"{relation.target}:rev_{relation.name}:{relation.source}"] = back
    return found


def read_edges(store: Store) -> dict[str, list[Edge]]:
    """Edges of every relation as the store serves them, target by target."""
    found = dict[str, list[Edge]]()
    names = {kind.name: store.node_column(kind.name, "id").to_pylist() for kind in store.node_types}
    for csc in store.topology().relations:
        sources, targets = names[csc.relation.source], names[csc.relation.target]
        edges = list[Edge]()
        for target in range(len(targets)):
            for at in range(csc.indptr[target], csc.indptr[target + 1]):
                weight = 0.0 if csc.weight is None else float(csc.weight[at])
                time = 0 if csc.timestamp is None else int(csc.timestamp[at])
                edges.append((sources[csc.indices[at]], targets[target], weight, time))
        found[str(csc.relation)] = edges
    return found


def read_features(store: Store, node_type: str) -> dict[Any, NDArray[Any]]:
    """Features of every node by id, as the store serves them."""
    table = store.features(node_type)
    assert table is not None
    out = np.empty((table.num_rows, table.dim), dtype=table.dtype)
    table.gather(np.arange(table.num_rows), out)
    table.close()
    return dict(zip(store.node_column(node_type, "id").to_pylist(), out, strict=True))
