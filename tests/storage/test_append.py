"""Append against plain dictionaries, and append with compact against a fresh ingest of everything."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.append import append
from storage.append_settings import AppendSettings
from storage.compact import compact
from storage.errors import BadInput
from storage.ingest import IngestResources, ingest
from storage.progress import NoProgress
from storage.store import Store
from storage.verify import verify
from tests.storage.growing import (
    DIM,
    Growing,
    all_bytes,
    checksums,
    expected_edges,
    read_edges,
    read_features,
    shop,
)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"undirected": True},
    {"order": "input"},
    {"order": "input", "undirected": True},
    {"feature_dtype": "float16", "fanout": (-1,)},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_append_and_compact_equal_a_fresh_ingest_of_everything(tmp_path: Path, settings: dict[str, Any]) -> None:
    tables = shop().write(tmp_path / "tables")
    fresh = ingest(tables.whole(**settings), out=str(tmp_path / "fresh"))
    ingest(tables.first(**settings), out=str(tmp_path / "store"))
    append(tables.later(), out=str(tmp_path / "store"))
    assert checksums(compact(str(tmp_path / "store"))) == checksums(fresh)
    assert verify(str(tmp_path / "store")).is_whole


def test_a_store_that_grew_reads_as_the_plain_model(tmp_path: Path) -> None:
    tables = shop(1).write(tmp_path / "tables")
    ingest(tables.first(undirected=True), out=str(tmp_path / "store"))
    generation = append(tables.later(), out=str(tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    assert store.generation.generation == generation.generation == 1
    assert [len(kind.segments) for kind in store.node_types] == [2, 2]
    expected = expected_edges(tables, undirected=True)
    found = read_edges(store)
    assert {name: Counter(edges) for name, edges in found.items()} == {
        name: Counter(edges) for name, edges in expected.items()
    }
    for name, edges in found.items():
        by_ends: dict[tuple[Any, Any, int], list[float]] = {}
        for source, target, weight, time in expected[name]:
            by_ends.setdefault((source, target, time), []).append(weight)
        for source, target, weight, time in edges:  # equal edges keep the order of the tables
            assert by_ends[source, target, time].pop(0) == weight
    users = tables.tables["user"].to_pydict()
    features = read_features(store, "user")
    assert features.keys() == set(users["id"])
    for identifier, row in zip(users["id"], users["features"], strict=True):
        assert features[identifier].tolist() == row
    rows = store.rows_of("user", pa.array(users["id"]))
    for column in ("id", "label", "split", "timestamp"):
        stored = store.node_column("user", column).to_pylist()
        assert [stored[row] for row in rows] == users[column]
    assert store.node_column("user", "position").take(pa.array(rows)).to_pylist() == list(range(len(rows)))


def test_nodes_alone_and_edges_alone_are_appended(tmp_path: Path) -> None:
    tables = shop(2).write(tmp_path / "tables")
    fresh = ingest(tables.whole(), out=str(tmp_path / "fresh"))
    ingest(tables.first(), out=str(tmp_path / "store"))
    later = tables.later()
    for name in ("item", "user"):
        append(AppendSettings(nodes={name: later.nodes[name]}), out=str(tmp_path / "store"))
    for name in later.edges:
        append(AppendSettings(edges={name: later.edges[name]}), out=str(tmp_path / "store"))
    assert Store.open(str(tmp_path / "store")).generation.generation == 5
    assert checksums(compact(str(tmp_path / "store"))) == checksums(fresh)


def test_compact_changes_nothing_that_a_compact_store_holds(tmp_path: Path) -> None:
    tables = shop(3).write(tmp_path / "tables")
    fresh = ingest(tables.whole(undirected=True), out=str(tmp_path / "store"))
    again = compact(str(tmp_path / "store"), resources=IngestResources(num_workers=1))
    assert again.generation == 1
    assert checksums(again) == checksums(fresh)


def test_the_same_append_is_done_once_and_a_copy_of_its_table_once_more(tmp_path: Path) -> None:
    tables = shop(5).write(tmp_path / "tables")
    out = tmp_path / "store"
    ingest(tables.first(), out=str(out))
    (name,) = [relation for relation in tables.later().edges if relation.startswith("user:follows")]
    edges = {name: tables.later().edges[name]}
    done = append(AppendSettings(edges=edges), out=str(out))
    before = all_bytes(out)
    assert append(AppendSettings(edges=edges), out=str(out)).generation == done.generation == 1
    assert all_bytes(out) == before
    copy = tmp_path / "copy.parquet"
    pq.write_table(pq.read_table(edges[name]), copy)
    more = append(AppendSettings(edges={name: str(copy)}), out=str(out))
    assert more.generation == 2
    count = {number: _num_edges(out, name, generation=number) for number in (0, 1, 2)}
    assert count[2] - count[1] == count[1] - count[0] == pq.read_table(copy).num_rows


def _num_edges(out: Path, relation: str, *, generation: int) -> int:
    store = Store.open(str(out), generation=generation)
    (found,) = [info.num_edges for info in store.relations if str(info.relation) == relation]
    return found


def test_appending_twice_and_compacting_between_equals_a_fresh_ingest(tmp_path: Path) -> None:
    whole = shop(4)
    middle = {name: (count + whole.tables[name].num_rows) // 2 for name, count in whole.old.items()}
    parts = [
        Growing({name: table.slice(0, middle[name]) for name, table in whole.tables.items()}, whole.old),
        Growing(whole.tables, middle),
    ]
    out = str(tmp_path / "store")
    tables = parts[0]
    # an edge may come only after its ends: the middle of the edges may name nodes of the end
    tables.tables |= {name: table.slice(0, whole.old[name]) for name, table in whole.tables.items() if ":" in name}
    parts[1].old = {name: whole.old[name] if ":" in name else middle[name] for name in middle}
    parts[0].write(tmp_path / "first")
    parts[1].write(tmp_path / "second")
    ingest(parts[0].first(), out=out)
    append(parts[0].later(), out=out)
    compact(out)
    append(parts[1].later(), out=out)
    fresh = ingest(parts[1].whole(), out=str(tmp_path / "fresh"))
    assert checksums(compact(out)) == checksums(fresh)


def test_quantised_features_keep_the_scale_of_the_store(tmp_path: Path) -> None:
    tables = shop(5)
    flat = tables.tables["user"]["features"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
    small = np.concatenate([flat[: tables.old["user"]], 0.1 * flat[tables.old["user"] :]])
    column = pa.FixedSizeListArray.from_arrays(pa.array(small.reshape(-1)), DIM)
    tables.tables["user"] = tables.tables["user"].set_column(0, "features", column)
    tables.write(tmp_path / "tables")
    fresh = ingest(tables.whole(quantize=True), out=str(tmp_path / "fresh"))
    first = ingest(tables.first(quantize=True), out=str(tmp_path / "store"))
    append(tables.later(), out=str(tmp_path / "store"))
    done = compact(str(tmp_path / "store"))
    assert done.node_types[0].feature_scale == first.node_types[0].feature_scale == fresh.node_types[0].feature_scale
    assert checksums(done) == checksums(fresh)


def test_quantised_features_beyond_the_scale_of_the_store_are_refused(tmp_path: Path) -> None:
    tables = shop(5)
    flat = tables.tables["user"]["features"].combine_chunks().flatten().to_numpy().reshape(-1, DIM).copy()
    flat[-1, 3] = 1000
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), DIM)
    tables.tables["user"] = tables.tables["user"].set_column(0, "features", column)
    tables.write(tmp_path / "tables")
    ingest(tables.first(quantize=True), out=str(tmp_path / "store"))
    before = all_bytes(tmp_path / "store")
    with pytest.raises(BadInput, match=r"value 1000\.0 at index 3 \(1 of 12 rows\): .*the store's scale"):
        append(tables.later(), out=str(tmp_path / "store"))
    assert all_bytes(tmp_path / "store") == before


def broken(tables: Growing, folder: Path, name: str, table: pa.Table) -> AppendSettings:
    """The later part with one table replaced."""
    path = folder / f"broken-{len(list(folder.glob('broken-*')))}.parquet"
    pq.write_table(table, path)
    later = tables.later()
    if ":" in name:
        return later.model_copy(update={"edges": {**later.edges, name: str(path)}})
    return later.model_copy(update={"nodes": {**later.nodes, name: str(path)}})


def test_bad_input_leaves_the_store_exactly_as_it_was(tmp_path: Path) -> None:
    tables = shop(6).write(tmp_path / "tables")
    ingest(tables.first(), out=str(tmp_path / "store"))
    before = all_bytes(tmp_path / "store")
    users, items = tables.tables["user"].slice(tables.old["user"]), tables.tables["item"].slice(tables.old["item"])
    follows = tables.tables["user:follows:user"].slice(tables.old["user:follows:user"])
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(users.num_rows * 4, np.float32)), 4)
    half = users["features"].cast(pa.list_(pa.float16(), DIM))
    cases: list[tuple[AppendSettings, str]] = [
        (
            broken(tables, tmp_path, "item", tables.tables["item"].slice(0, 3)),
            r"again, first at .*ids\.0\.parquet, column id, row .*append new nodes only",
        ),
        (broken(tables, tmp_path, "item", pa.concat_tables([items, items])), r"again, first at .*remove the repeated"),
        (broken(tables, tmp_path, "item", pa.table({"id": ["a"]})), "ids of node type item are int64"),
        (
            broken(tables, tmp_path, "user", users.set_column(0, "features", wide)),
            r"4 float32 features: nodes of type user have 5 float32 features in the store",
        ),
        (broken(tables, tmp_path, "user", users.set_column(0, "features", half)), "5 float16 .* 5 float32"),
        (broken(tables, tmp_path, "user", users.drop_columns(["features"])), "no features: .*5 float32"),
        (broken(tables, tmp_path, "user", users.drop_columns(["label"])), "column label: missing"),
        (
            broken(tables, tmp_path, "item", items.append_column("label", pa.array([1] * items.num_rows))),
            "column label: there, but the store's nodes of type item have none",
        ),
        (broken(tables, tmp_path, "user:follows:user", follows.drop_columns(["weight"])), "column weight: missing"),
        (
            broken(tables, tmp_path, "user:follows:user", follows.set_column(0, "src", pa.array(["x"] * len(follows)))),
            "unknown user 'x'",
        ),
        (AppendSettings(nodes={"shop": "x"}), "node type 'shop': unknown: node types of this store: user, item"),
        (AppendSettings(edges={"user:sees:item": "x"}), "relation user:sees:item: not a relation"),
        (AppendSettings(), "neither --nodes nor --edges"),
        (tables.later().model_copy(update={"undirected": True}), "--undirected True: the store .* has False"),
        (tables.later().model_copy(update={"fanout": (9,)}), "--fanout 9: the store .* has 3,2"),
    ]
    for settings, message in cases:
        with pytest.raises(BadInput, match=message):
            append(settings, out=str(tmp_path / "store"))
        assert all_bytes(tmp_path / "store") == before, message
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        append(tables.later(), out=str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_two_appends_at_once_refuse_each_other(tmp_path: Path) -> None:
    tables = shop(7).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.first(), out=out)

    class Second(NoProgress):
        refused = 0

        def stage(self, name: str, *, total: int, unit: str) -> None:
            with pytest.raises(BadInput, match="another ingest is writing there"):
                append(tables.later(), out=out)
            with pytest.raises(BadInput, match="another ingest is writing there"):
                compact(out)
            self.refused += 1

    second = Second()
    append(tables.later(), out=out, progress=second)
    assert second.refused > 5
    assert Store.open(out).generation.generation == 1


def test_a_reader_keeps_the_generation_that_it_opened(tmp_path: Path) -> None:
    tables = shop(8).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.first(), out=out)
    opened = Store.open(out)
    before, rows = read_edges(opened), {k: v.tolist() for k, v in read_features(opened, "user").items()}
    append(tables.later(), out=out)
    compact(out)
    for store in (opened, Store.open(out, generation=0)):
        assert store.num_nodes("user") == tables.old["user"]
        assert read_edges(store) == before
        assert {k: v.tolist() for k, v in read_features(store, "user").items()} == rows
    assert Store.open(out).num_nodes("user") == tables.tables["user"].num_rows


def test_a_store_elsewhere_grows_and_is_compacted(tmp_path: Path) -> None:
    tables = shop(9).write(tmp_path / "tables")
    out = f"memory://{tmp_path.name}/store"
    fresh = ingest(tables.whole(), out=str(tmp_path / "fresh"))
    ingest(tables.first(), out=out)
    append(tables.later(), out=out)
    assert checksums(compact(out)) == checksums(fresh)
    assert verify(out).is_whole


def test_features_that_stay_in_their_tables_stay_there_when_a_store_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tables = shop(10).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.first(features="in-place"), out=out)
    append(tables.later(), out=out)
    store = Store.open(out)
    assert [segment.in_place is None for segment in store.node_types[0].segments] == [False, False]
    users = tables.tables["user"].to_pydict()
    features = read_features(store, "user")
    for identifier, row in zip(users["id"], users["features"], strict=True):
        assert features[identifier].tolist() == row
    before = all_bytes(tmp_path / "store")
    with pytest.raises(BadInput, match="its features stay in Parquet: compact rewrites features that are in the store"):
        compact(out)
    assert all_bytes(tmp_path / "store") == before
