"""Delete against an ingest of tables without the deleted rows."""

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
from storage.delete import DeleteSettings, delete
from storage.errors import BadInput
from storage.ingest import ingest
from storage.schema import Relation
from storage.store import Store
from storage.verify import verify
from tests.storage.growing import (
    RELATIONS,
    Growing,
    all_bytes,
    checksums,
    expected_edges,
    read_edges,
    shop,
)


def without(
    growing: Growing, *, nodes: dict[str, list[Any]], pairs: dict[str, set[tuple[Any, Any]]], undirected: bool
) -> Growing:
    """The tables without some nodes, all their edges, and all edges between some pairs."""
    tables, old = dict[str, pa.Table](), dict[str, int]()
    for name, table in growing.tables.items():
        if ":" not in name:
            gone = set(nodes.get(name, []))
            kept = [identifier not in gone for identifier in table["id"].to_pylist()]
        else:
            relation, wanted = Relation.parse(name), set(pairs.get(name, set()))
            if undirected and relation.source == relation.target:
                wanted |= {(v, u) for u, v in wanted}
            ends = zip(table["src"].to_pylist(), table["dst"].to_pylist(), strict=True)
            kept = [
                (u, v) not in wanted
                and u not in nodes.get(relation.source, [])
                and v not in nodes.get(relation.target, [])
                for u, v in ends
            ]
        tables[name] = table.filter(pa.array(kept))
        old[name] = sum(kept[: growing.old[name]])
    return Growing(tables, old)


def chosen(
    growing: Growing, folder: Path
) -> tuple[DeleteSettings, dict[str, list[Any]], dict[str, set[tuple[Any, Any]]]]:
    """Some nodes and some pairs, from tables that name several of them twice."""
    rng = np.random.default_rng(5)
    nodes = {
        name: rng.choice(np.array(growing.tables[name]["id"].to_pylist(), dtype=object), 9).tolist()
        for name in ("user", "item")
    }
    pairs, urls = dict[str, set[tuple[Any, Any]]](), dict[str, str]()
    for name in RELATIONS[:2]:
        some = growing.tables[name].select(["src", "dst"]).take(rng.integers(0, growing.tables[name].num_rows, 15))
        pairs[name] = set(zip(some["src"].to_pylist(), some["dst"].to_pylist(), strict=True))
        urls[name] = str(folder / f"pairs-{name.replace(':', '-')}.parquet")
        pq.write_table(pa.concat_tables([some, some.slice(3)]), urls[name])
    files = {}
    for name, ids in nodes.items():
        files[name] = str(folder / f"gone-{name}.parquet")
        pq.write_table(pa.table({"id": ids}), files[name])
    return DeleteSettings(nodes=files, edges=urls), nodes, pairs


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("order", ["hotness", "input"])
def test_delete_and_compact_equal_an_ingest_of_the_tables_without_the_rows(
    tmp_path: Path, undirected: bool, order: str
) -> None:
    tables = shop(11).write(tmp_path / "tables")
    settings, nodes, pairs = chosen(tables, tmp_path)
    less = without(tables, nodes=nodes, pairs=pairs, undirected=undirected).write(tmp_path / "less")
    fresh = ingest(less.whole(undirected=undirected, order=order), out=str(tmp_path / "fresh"))
    out = str(tmp_path / "store")
    ingest(tables.first(undirected=undirected, order=order), out=out)
    append(tables.later(), out=out)
    delete(settings, out=out)
    store = Store.open(out)
    expected = expected_edges(less, undirected=undirected)
    found = read_edges(store)
    assert {name: Counter(edges) for name, edges in found.items()} == {
        name: Counter(edges) for name, edges in expected.items()
    }
    for name, ids in nodes.items():
        gone = store.node_column(name, "id").take(pa.array(store.deleted(name)))
        assert set(gone.to_pylist()) == set(ids)
        with pytest.raises(BadInput, match="unknown id"):
            store.rows_of(name, gone)
    assert checksums(compact(out)) == checksums(fresh)
    assert verify(out).is_whole
    assert Store.open(out, generation=1).num_nodes("user") == tables.tables["user"].num_rows


def test_a_store_grows_after_a_delete_and_a_deleted_id_comes_back_after_compact(tmp_path: Path) -> None:
    tables = shop(12)
    first = Growing(
        {name: table.slice(0, tables.old[name]) for name, table in tables.tables.items()},
        {name: count // 2 if ":" not in name else count for name, count in tables.old.items()},
    ).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(first.whole(), out=out)
    gone = [first.tables["user"]["id"][5].as_py()]
    pq.write_table(pa.table({"id": gone}), tmp_path / "gone.parquet")
    delete(DeleteSettings(nodes={"user": str(tmp_path / "gone.parquet")}), out=out)
    pq.write_table(first.tables["user"].slice(5, 1), tmp_path / "back.parquet")
    back = AppendSettings(nodes={"user": str(tmp_path / "back.parquet")})
    with pytest.raises(BadInput, match="a deleted id is free again after `compact`"):
        append(back, out=out)
    pq.write_table(pa.table({"src": gone, "dst": first.tables["item"]["id"].slice(0, 1)}), tmp_path / "edge.parquet")
    edge = AppendSettings(edges={"user:buys:item": str(tmp_path / "edge.parquet")})
    with pytest.raises(BadInput, match=f"unknown user '{gone[0]}'"):
        append(edge, out=out)
    kept = first.tables["user"].filter(pa.array([name not in gone for name in first.tables["user"]["id"].to_pylist()]))
    compact(out)
    append(back, out=out)
    append(edge, out=out)
    less = without(first, nodes={"user": gone}, pairs={}, undirected=False)
    less.tables["user"] = pa.concat_tables([kept, first.tables["user"].slice(5, 1)])
    edges = pq.read_table(tmp_path / "edge.parquet")
    less.tables["user:buys:item"] = pa.concat_tables([less.tables["user:buys:item"], edges])
    fresh = ingest(less.write(tmp_path / "less").whole(), out=str(tmp_path / "fresh"))
    assert checksums(compact(out)) == checksums(fresh)


def test_deleting_twice_adds_up(tmp_path: Path) -> None:
    tables = shop(13).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.whole(undirected=True), out=out)
    names = tables.tables["user"]["id"].to_pylist()
    for number, ids in enumerate((names[3:7], names[5:9])):
        pq.write_table(pa.table({"id": ids}), tmp_path / f"{number}.parquet")
    delete(DeleteSettings(nodes={"user": str(tmp_path / "0.parquet")}), out=out)
    again = DeleteSettings(nodes={"user": str(tmp_path / "1.parquet")})
    with pytest.raises(BadInput, match=r"unknown user 'user-\d+' \(2 of 4 rows\).*--missing ignore"):
        delete(again, out=out)
    done = delete(again.model_copy(update={"missing": "ignore"}), out=out)
    assert done.report["deleted"]["nodes"]["user"] == {"rows": 2, "missing": 2}
    less = without(tables, nodes={"user": names[3:9]}, pairs={}, undirected=True).write(tmp_path / "less")
    fresh = ingest(less.whole(undirected=True), out=str(tmp_path / "fresh"))
    assert checksums(compact(out)) == checksums(fresh)


def test_what_cannot_be_deleted_is_refused_and_the_store_kept(tmp_path: Path) -> None:
    tables = shop(14).write(tmp_path / "tables")
    out = tmp_path / "store"
    ingest(tables.whole(), out=str(out))
    before = all_bytes(out)
    users, items = tables.tables["user"]["id"], tables.tables["item"]["id"]
    pairs = set(zip(*(tables.tables["user:buys:item"][end].to_pylist() for end in ("src", "dst")), strict=True))
    apart = next((u, i) for u in users.to_pylist() for i in items.to_pylist() if (u, i) not in pairs)

    def table(**columns: Any) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    buys = "user:buys:item"
    cases = [
        (DeleteSettings(), "neither --nodes nor --edges"),
        (DeleteSettings(nodes={"user": table(id=["x"])}), "unknown user 'x'"),
        (DeleteSettings(nodes={"user": table(id=[1])}), "ids of node type user are string"),
        (DeleteSettings(nodes={"user": table(id=[None, "x"])}), "null"),
        (DeleteSettings(nodes={"item": table(id=items)}), "all 90 nodes of type item.*keeps at least one"),
        (
            DeleteSettings(edges={buys: table(src=[apart[0]], dst=[apart[1]])}),
            f"no edge from '{apart[0]}' to {apart[1]} ",
        ),
        (DeleteSettings(edges={buys: table(src=["x"], dst=[apart[1]])}), "unknown user 'x'.*--missing ignore"),
        (
            DeleteSettings(edges={"item:rev_buys:user": table(src=[1], dst=["x"])}),
            "not a relation of the store's tables",
        ),
    ]
    for settings, message in cases:
        with pytest.raises(BadInput, match=message):
            delete(settings, out=str(out))
        assert all_bytes(out) == before, message
    ignored = DeleteSettings(edges={buys: table(src=[apart[0], "x"], dst=[apart[1], apart[1]])}, missing="ignore")
    assert delete(ignored, out=str(out)).report["deleted"]["pairs_missing"] == {buys: 1}


def test_a_relation_may_lose_all_its_edges(tmp_path: Path) -> None:
    tables = shop(15).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.whole(undirected=True), out=out)
    delete(DeleteSettings(edges={"user:buys:item": tables.files["user:buys:item"]}), out=out)
    found = read_edges(Store.open(out))
    assert found["user:buys:item"] == found["item:rev_buys:user"] == []
    compact(out)
    assert {name: Counter(edges) for name, edges in read_edges(Store.open(out)).items()} == {
        name: Counter(edges) for name, edges in found.items()
    }
    append(AppendSettings(edges={"user:buys:item": tables.files["user:buys:item"]}), out=out)
    fresh = ingest(tables.whole(undirected=True), out=str(tmp_path / "fresh"))
    assert checksums(compact(out)) == checksums(fresh)
