"""Ingest against plain dictionaries and sorts; stored files are read with NumPy and Arrow only."""

import json
import os
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from storage.schema import Generation

FANOUT = (3, 2)
FEATURE_DIM = 5


def shop(seed: int = 0) -> dict[str, pa.Table]:
    """Users with string ids and every column, items with integer ids only; loops, parallel edges, loners."""
    rng = np.random.default_rng(seed)
    users = [f"user-{i}" for i in rng.permutation(40)]
    items = [int(i) for i in rng.permutation(30) * 7 - 50]
    features = rng.standard_normal((40, FEATURE_DIM)).astype(np.float32)

    def pick(ids: list[Any], count: int) -> list[Any]:
        return [ids[i] for i in np.minimum(*rng.integers(0, len(ids) - 3, (2, count)))]

    return {
        "user": pa.table(
            {
                "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), FEATURE_DIM),
                "id": users,
                "label": pa.array(rng.integers(-1, 4, 40), pa.int32()),
                "split": pa.array(rng.choice(["train", "val", "test", "none"], 40)).dictionary_encode(),
                "timestamp": rng.integers(-5, 5, 40),
                "ignored": [None] * 40,
            }
        ),
        "item": pa.table({"id": items}),
        "user:follows:user": pa.table(
            {
                "src": pick(users, 200),
                "dst": pick(users, 200),
                "weight": rng.random(200),
                "timestamp": rng.integers(0, 4, 200),
            }
        ),
        "user:buys:item": pa.table({"src": pick(users, 150), "dst": pick(items, 150)}),
        "item:like:item": pa.table({"src": pick(items, 60), "dst": pick(items, 60), "weight": rng.integers(0, 9, 60)}),
    }


def write_tables(
    folder: Path, tables: dict[str, pa.Table], *, num_files: int = 1, row_group_size: int = 1000
) -> IngestSettings:
    """Write each table as `num_files` files and return the settings that read them."""
    urls = {}
    for name, table in tables.items():
        path = folder / name.replace(":", "-")
        path.mkdir(parents=True, exist_ok=True)
        for old in path.iterdir():
            old.unlink()
        step = -(-table.num_rows // num_files)
        for i in range(num_files):
            part = table.slice(i * step, step)
            pq.write_table(part, path / f"{i:03}.parquet", row_group_size=row_group_size)
        urls[name] = str(path)
    return IngestSettings(
        nodes={name: url for name, url in urls.items() if ":" not in name},
        edges={name: url for name, url in urls.items() if ":" in name},
        fanout=FANOUT,
    )


def all_bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def stored_nodes(store: Path, name: str) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(store / f"nodes/{name}/ids.0.parquet").to_pydict()
    return columns


def stored_edges(store: Path, relation: str) -> dict[str, Any]:
    folder = store / "edges" / relation.replace(":", "__")
    return {
        name: np.load(folder / f"{name}.0.npy")
        for name in ("indptr", "indices", "out_degree", "weight", "timestamp")
        if (folder / f"{name}.0.npy").exists()
    }


Row = tuple[Any, Any, float, int]  # source id, target id, weight, time


def expected_relations(tables: dict[str, pa.Table], *, undirected: bool) -> dict[str, list[Row]]:
    """Rows of every stored relation in input order, by the words of the design."""
    found = dict[str, list[Row]]()
    for name, table in tables.items():
        if ":" not in name:
            continue
        source, short, target = name.split(":")
        columns = table.to_pydict()
        none = [0] * table.num_rows
        rows = list(
            zip(
                columns["src"],
                columns["dst"],
                [float(np.float32(w)) for w in columns.get("weight", none)],
                columns.get("timestamp", none),
                strict=True,
            )
        )
        back = [(v, u, w, t) for u, v, w, t in rows]
        if not undirected:
            found[name] = rows
        elif source == target:
            pairs = zip(rows, back, strict=True)
            found[name] = [row for there, turned in pairs for row in dict.fromkeys((there, turned))]
        else:
            found[name] = rows
            found[f"{target}:rev_{short}:{source}"] = back
    return found


def exact_hotness(relations: dict[str, list[Row]], tables: dict[str, pa.Table]) -> dict[tuple[str, Any], Fraction]:
    level = {(t, i): Fraction(1) for t in ("user", "item") for i in tables[t]["id"].to_pylist()}
    total = dict(level)
    for k in FANOUT:
        reached = dict.fromkeys(level, Fraction(0))
        for name, rows in relations.items():
            source, _, target = name.split(":")
            degree = Counter(v for _, v, _, _ in rows)
            for u, v, _, _ in rows:
                reached[source, u] += level[target, v] * min(Fraction(1), Fraction(k, degree[v]))
        total = {node: total[node] + reached[node] for node in total}
        level = reached
    return total


def check_store(store: Path, tables: dict[str, pa.Table], *, undirected: bool) -> None:
    """Compare every array of the store with the input."""
    relations = expected_relations(tables, undirected=undirected)
    hotness = exact_hotness(relations, tables)
    dense = dict[str, dict[Any, int]]()
    for name in ("user", "item"):
        given, nodes = tables[name].to_pydict(), stored_nodes(store, name)
        order = nodes["position"]
        assert sorted(order) == list(range(len(given["id"])))
        for column in ("id", "label", "split", "timestamp"):
            assert (column in given) == (column in nodes)
            if column in given:
                assert nodes[column] == [given[column][i] for i in order]
        values = [(hotness[name, i], -position) for i, position in zip(nodes["id"], order, strict=True)]
        for (a, first), (b, second) in pairwise(values):
            assert a > b or (a == b and first > second) or abs(1 - a / b) < Fraction(1, 10**12)
        dense[name] = {node: row for row, node in enumerate(nodes["id"])}
        path = store / f"nodes/{name}/features.0.npy"
        assert path.exists() == ("features" in given)
        if path.exists():
            expected = np.array([given["features"][i] for i in order], dtype=np.float32)
            assert np.array_equal(np.load(path), expected)
    for name, rows in relations.items():
        source, _, target = name.split(":")
        columns = stored_edges(store, name)
        by_target: list[list[tuple[int, int, int, float]]] = [[] for _ in dense[target]]
        for position, (u, v, w, t) in enumerate(rows):
            by_target[dense[target][v]].append((t, dense[source][u], position, w))
        ordered = [edge for edges in by_target for edge in sorted(edges)]
        assert columns["indptr"].tolist() == np.cumsum([0, *map(len, by_target)]).tolist()
        assert columns["indices"].tolist() == [u for _, u, _, _ in ordered]
        counts = Counter(u for _, u, _, _ in ordered)
        assert columns["out_degree"].tolist() == [counts[u] for u in range(len(dense[source]))]
        kept = tables.get(name, tables["user:buys:item"]).column_names
        for column, index in (("weight", 3), ("timestamp", 0)):
            assert (column in columns) == (column in kept)
            if column in columns:
                assert columns[column].tolist() == [edge[index] for edge in ordered]
                assert columns[column].dtype == {"weight": np.float32, "timestamp": np.int64}[column]


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_stored_array_equals_the_input(tmp_path: Path, undirected: bool, seed: int) -> None:
    tables = shop(seed)
    settings = write_tables(tmp_path / "in", tables, num_files=3, row_group_size=7)
    settings = settings.model_copy(update={"undirected": undirected})
    ingest(settings, out=str(tmp_path / "store"))
    check_store(tmp_path / "store", tables, undirected=undirected)


def test_the_generation_says_what_was_written(tmp_path: Path) -> None:
    settings = write_tables(tmp_path / "in", shop()).model_copy(update={"undirected": True})
    generation = ingest(settings, out=str(tmp_path / "store"))
    user, item = generation.node_types
    assert (user.id_type, user.feature_dim, user.feature_dtype) == ("string", FEATURE_DIM, "float32")
    assert (item.id_type, item.feature_dim, item.has_label) == ("int64", None, False)
    assert user.has_label
    assert user.has_split
    assert user.has_timestamp
    pairs = {str(info.relation): str(info.reverse_of) for info in generation.relations}
    assert pairs == {
        "user:follows:user": "user:follows:user",
        "user:buys:item": "item:rev_buys:user",
        "item:rev_buys:user": "user:buys:item",
        "item:like:item": "item:like:item",
    }
    stored = Generation.model_validate_json((tmp_path / "store/generations/0.json").read_bytes())
    assert "seconds" in generation.report
    assert stored.report == {k: v for k, v in generation.report.items() if k != "seconds"}
    assert stored.settings == json.loads(settings.model_dump_json())
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        "edges",
        "generations",
        "manifest.json",
        "nodes",
    ]


def test_without_undirected_no_relation_names_a_reverse(tmp_path: Path) -> None:
    generation = ingest(write_tables(tmp_path / "in", shop()), out=str(tmp_path / "store"))
    assert [info.reverse_of for info in generation.relations] == [None] * 3


def test_the_report_counts_what_the_tables_hold(tmp_path: Path) -> None:
    tables = {
        "n": pa.table(
            {
                "id": [1, 2, 3, 4, 5],
                "features": pa.array(
                    [[1.0, np.nan], [np.inf, -np.inf], [1.0, 2.0], [1.0, 2.0], [3.0, 4.0]],
                    pa.list_(pa.float32()),
                ),
            }
        ),
        "n:to:n": pa.table({"src": [1, 1, 1, 2, 3, 9, 2], "dst": [2, 2, 2, 1, 3, 1, 8]}),
    }
    settings = write_tables(tmp_path / "in", tables).model_copy(
        update={"dangling": "drop", "nan": "zero", "undirected": True}
    )
    generation = ingest(settings, out=str(tmp_path / "store"))
    assert generation.report["nodes"] == {"n": {"rows": 5, "isolated": 2, "nan_zeroed": 3}}
    assert generation.report["edges"] == {
        "n:to:n": {
            "rows": 7,
            "dangling_dropped": 2,
            "self_loops": 1,
            "reverse_edges_added": 4,
            "parallel_edges": 6,
        }
    }
    position = stored_nodes(tmp_path / "store", "n")["position"]
    clean = np.array([[1, 0], [0, 0], [1, 2], [1, 2], [3, 4]])
    assert np.array_equal(np.load(tmp_path / "store/nodes/n/features.0.npy"), clean[position])


def test_dropping_dangling_edges_equals_never_having_had_them(tmp_path: Path) -> None:
    tables = shop()
    follows = tables["user:follows:user"]
    ghosts = follows.slice(0, 20).set_column(0, "src", pa.array(["ghost"] * 20))
    mixed = pa.concat_tables([follows.slice(0, 100), ghosts, follows.slice(100)])
    settings = write_tables(tmp_path / "in", tables | {"user:follows:user": mixed}, num_files=2)
    ingest(settings.model_copy(update={"dangling": "drop"}), out=str(tmp_path / "store"))
    check_store(tmp_path / "store", tables, undirected=False)


def test_the_same_rows_in_other_files_and_row_groups_give_the_same_bytes(tmp_path: Path) -> None:
    stores = list[dict[str, bytes]]()
    for i, (num_files, row_group_size) in enumerate([(1, 1000), (4, 3)]):
        settings = write_tables(tmp_path / "in", shop(), num_files=num_files, row_group_size=row_group_size)
        ingest(settings, out=str(tmp_path / f"store{i}"))
        stores.append(all_bytes(tmp_path / f"store{i}"))
    assert stores[0] == stores[1]


class Recorder(NoProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.stages.append([name, total, unit, 0])

    def advance(self, amount: int) -> None:
        self.stages[-1][3] += amount


def test_progress_reaches_the_total_of_every_stage(tmp_path: Path) -> None:
    progress = Recorder()
    ingest(write_tables(tmp_path / "in", shop()), out=str(tmp_path / "store"), progress=progress)
    assert [name for name, *_ in progress.stages] == [
        "read nodes",
        "map ids",
        "read edges",
        "count degrees",
        "order nodes",
        "arrange nodes",
        "write nodes",
        *["arrange edges", "write edges"] * 3,
        "commit",
    ]
    totals = [(total, unit) for _, total, unit, _ in progress.stages]
    assert totals[:7] == [
        (70, "nodes"), (70, "nodes"), (410, "edges"), (410, "edges"), (820, "edges"), (70, "nodes"), (70, "nodes"),
    ]  # fmt: skip
    assert [total for name, total, *_ in progress.stages if name == "write edges"] == [200, 150, 60]
    assert [done for *_, done in progress.stages] == [total for total, _ in totals]


def test_a_store_can_be_written_to_any_file_system(tmp_path: Path) -> None:
    settings = write_tables(tmp_path / "in", shop())
    fs = fsspec.filesystem("memory")
    try:
        ingest(settings, out="memory://ingested/store")
        ingest(settings, out=str(tmp_path / "store"))
        here = all_bytes(tmp_path / "store")
        assert {name: fs.cat_file(f"/ingested/store/{name}") for name in here} == here
        assert len(fs.find("/ingested/store")) == len(here)
    finally:
        fs.rm("/ingested", recursive=True)


def data_folder() -> Path:
    default = Path(__file__).parents[2].parent / "shared" / "data"
    return Path(os.environ.get("HOPSTREAM_DATA", default))


needs_data = pytest.mark.skipif(not data_folder().exists(), reason="the shared data sets are absent")


@needs_data
@pytest.mark.parametrize("name", ["cora", "ego_twitter"])
def test_real_graphs_keep_every_edge_and_feature(tmp_path: Path, name: str) -> None:
    folder = data_folder() / name
    settings = IngestSettings(
        nodes={"node": f"{folder}/nodes.parquet"}, edges={"node:to:node": f"{folder}/edges.parquet"}
    )
    ingest(settings, out=str(tmp_path / "store"))
    given, edges = pq.read_table(folder / "nodes.parquet"), pq.read_table(folder / "edges.parquet")
    nodes = pq.read_table(tmp_path / "store/nodes/node/ids.0.parquet")
    position = nodes["position"].to_numpy()
    assert nodes["id"].equals(given["id"].take(nodes["position"]))
    flat = given["features"].combine_chunks().flatten().to_numpy()
    found = np.load(tmp_path / "store/nodes/node/features.0.npy", mmap_mode="r")
    assert np.array_equal(found, flat.reshape(len(position), -1)[position])
    columns = stored_edges(tmp_path / "store", "node:to:node")
    ids = nodes["id"].to_numpy()
    target = np.repeat(np.arange(len(ids)), np.diff(columns["indptr"]))
    stored = np.stack([ids[columns["indices"]], ids[target]])
    wanted = np.stack([edges["src"].to_numpy(), edges["dst"].to_numpy()])
    assert np.array_equal(stored[:, np.lexsort(stored)], wanted[:, np.lexsort(wanted)])


@needs_data
def test_a_real_graph_of_two_types_with_string_ids_is_stored_both_ways(tmp_path: Path) -> None:
    folder = data_folder() / "amazon_book"
    settings = IngestSettings(
        nodes={"user": f"{folder}/users.parquet", "item": f"{folder}/items.parquet"},
        edges={"user:reads:item": f"{folder}/reads.parquet"},
        undirected=True,
    )
    generation = ingest(settings, out=str(tmp_path / "store"))
    edges = pq.read_table(folder / "reads.parquet")
    assert [info.num_edges for info in generation.relations] == [edges.num_rows] * 2
    dense = {
        name: {node: row for row, node in enumerate(stored_nodes(tmp_path / "store", name)["id"])}
        for name in ("user", "item")
    }
    ends = [("user", "src"), ("item", "dst")]
    wanted = np.array([[dense[name][i] for i in edges[column].to_pylist()] for name, column in ends])
    for relation, pairs in (("user:reads:item", wanted), ("item:rev_reads:user", wanted[::-1])):
        columns = stored_edges(tmp_path / "store", relation)
        target = np.repeat(np.arange(len(columns["indptr"]) - 1), np.diff(columns["indptr"]))
        assert np.array_equal(np.stack([columns["indices"], target]), pairs[:, np.lexsort(pairs)])
