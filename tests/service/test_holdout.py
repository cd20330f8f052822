"""Holding edges out: no pair is in two tables, nothing is lost, and what is held out is not in the store."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from service.holdout import PARTS, HoldoutReport, hold_out
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from storage.schema import DEFAULT_RELATION, Relation
from storage.store import Store
from tests.processes import hopstream, result_of

BIPARTITE = Relation("user", "reads", "item")
NUM_NODES = 60


def edges_of(num_edges: int = 3000) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges with many duplicates, reverses and some self-loops."""
    rng = np.random.default_rng(4)
    return rng.integers(0, NUM_NODES, num_edges), rng.integers(0, NUM_NODES, num_edges)


def split(
    folder: Path,
    table: pa.Table,
    *,
    relation: Relation = DEFAULT_RELATION,
    undirected: bool = True,
    shares: tuple[float, float] = (0.1, 0.2),
    seed: int = 0,
    group: int = 10_000,
) -> HoldoutReport:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "edges.parquet", row_group_size=group)
    return hold_out(
        str(folder / "edges.parquet"),
        relation=relation,
        undirected=undirected,
        val_share=shares[0],
        test_share=shares[1],
        seed=seed,
        out=str(folder / "out"),
        progress=NoProgress(),
    )


def rows(folder: Path, part: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in pq.read_table(folder / "out" / f"{part}.parquet").to_pylist()]


def test_no_undirected_pair_is_in_two_tables_and_no_row_is_lost(tmp_path: Path) -> None:
    source, target = edges_of()
    weight = np.arange(len(source), dtype=np.float32)
    report = split(tmp_path, pa.table({"dst": target, "weight": weight, "src": source}))
    found = {part: rows(tmp_path, part) for part in PARTS}
    wanted = Counter(zip(source.tolist(), target.tolist(), weight.tolist(), strict=True))
    assert Counter(row for part in PARTS for row in found[part]) == wanted
    assert [report.train_edges, report.val_edges, report.test_edges] == [len(found[part]) for part in PARTS]
    pairs = {part: {frozenset(row[:2]) for row in found[part]} for part in PARTS}
    assert not pairs["train"] & pairs["val"]
    assert not pairs["train"] & pairs["test"]
    assert not pairs["val"] & pairs["test"]
    assert report.self_loops == (source == target).sum()
    assert all(len(pair) == 2 for part in ("val", "test") for pair in pairs[part])
    assert json.loads((tmp_path / "out" / "holdout.json").read_text()) == report.to_json()


def test_without_undirected_a_pair_and_its_reverse_are_drawn_apart_and_duplicates_together(tmp_path: Path) -> None:
    source, target = edges_of()
    split(tmp_path, pa.table({"src": source, "dst": target}), undirected=False)
    part_of: dict[tuple[object, ...], str] = {}
    for part in PARTS:
        for row in rows(tmp_path, part):
            assert part_of.setdefault(row, part) == part
    apart = [pair for pair, part in part_of.items() if part_of.get(pair[::-1], part) != part]
    assert apart


def test_where_a_pair_goes_depends_on_the_seed_and_on_nothing_else_in_the_table(tmp_path: Path) -> None:
    source, target = edges_of()
    order = np.random.default_rng(1).permutation(len(source))
    split(tmp_path / "a", pa.table({"src": source, "dst": target}))
    split(tmp_path / "b", pa.table({"src": target[order][:900], "dst": source[order][:900]}), group=7)
    split(tmp_path / "c", pa.table({"src": source, "dst": target}), seed=1)
    held = {name: {frozenset(row) for row in rows(tmp_path / name, "test")} for name in "abc"}
    present = {frozenset(pair) for pair in zip(source[order][:900].tolist(), target[order][:900].tolist(), strict=True)}
    assert held["b"] == held["a"] & present
    assert held["c"] != held["a"]


def test_shares_are_those_asked_for_up_to_chance(tmp_path: Path) -> None:
    pairs = np.array([(a, b) for a in range(150) for b in range(a)])
    report = split(tmp_path, pa.table({"src": pairs[:, 0], "dst": pairs[:, 1]}))
    for count, share in ((report.val_edges, 0.1), (report.test_edges, 0.2)):
        assert abs(count - share * len(pairs)) < 5 * (len(pairs) * share * (1 - share)) ** 0.5


def test_ends_of_two_types_are_never_one_node(tmp_path: Path) -> None:
    names = pa.array([f"é{number}" for number in range(NUM_NODES)])
    source, target = edges_of()
    table = pa.table({"src": names.take(pa.array(source)), "dst": names.take(pa.array(target))})
    report = split(tmp_path, table, relation=BIPARTITE)
    assert not report.undirected
    assert report.self_loops == 0
    assert any(a == b for a, b in rows(tmp_path, "test"))
    assert pq.read_table(tmp_path / "out" / "test.parquet").schema.field("src").type == pa.string()


def test_what_is_held_out_is_no_edge_of_the_store_of_the_rest(tmp_path: Path) -> None:
    source, target = edges_of()
    table = pa.table({"src": source, "dst": target})
    split(tmp_path, table)
    pq.write_table(pa.table({"id": np.arange(NUM_NODES)}), tmp_path / "nodes.parquet")
    ingest(
        IngestSettings(
            nodes={"node": str(tmp_path / "nodes.parquet")},
            edges={"node:to:node": str(tmp_path / "out" / "train.parquet")},
            undirected=True,
        ),
        out=str(tmp_path / "store"),
    )
    store = Store.open(str(tmp_path / "store"))
    (relation,) = store.topology().relations
    ids = store.node_column("node", "id").to_numpy()
    stored_target = np.repeat(np.arange(NUM_NODES), np.diff(relation.indptr))
    stored = {frozenset((int(ids[a]), int(ids[b]))) for a, b in zip(relation.indices, stored_target, strict=True)}
    assert not stored & {frozenset(row) for part in ("val", "test") for row in rows(tmp_path, part)}


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.1, 0.0), (0.0, 1.0)])
def test_shares_that_leave_nothing_are_refused(tmp_path: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(BadInput, match="--val, --test"):
        split(tmp_path, pa.table({"src": [1], "dst": [2]}), shares=shares)


def test_a_table_without_an_edge_for_a_part_and_a_missing_id_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="none of them drawn for"):
        split(tmp_path, pa.table({"src": [1], "dst": [2]}))
    with pytest.raises(BadInput, match=r"column dst, row 1 .*null"):
        split(tmp_path, pa.table({"src": [1, 2, 3], "dst": [2, None, 1]}))
    assert not list((tmp_path / "out").glob("*"))


def test_a_table_inside_the_folder_written_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"src": [1], "dst": [2]}), tmp_path / "edges.parquet")
    with pytest.raises(BadInput, match="folder of their own"):
        hold_out(
            str(tmp_path), relation=DEFAULT_RELATION, undirected=True, val_share=0.1, test_share=0.1, seed=0,
            out=str(tmp_path), progress=NoProgress(),
        )  # fmt: skip


def test_the_command_splits_a_named_relation(tmp_path: Path) -> None:
    source, target = edges_of()
    pq.write_table(pa.table({"src": source, "dst": target}), tmp_path / "edges.parquet")
    words = ["--edges", f"user:reads:item={tmp_path}/edges.parquet", "--out", f"{tmp_path}/out"]
    report = result_of("holdout", *words, "--val", "0", "--test", "0.3", "--seed", "5")
    assert report["relation"] == "user:reads:item"
    assert report["val_edges"] == pq.read_table(tmp_path / "out" / "val.parquet").num_rows == 0
    assert report["train_edges"] + report["test_edges"] == len(source)
    refused = hopstream("holdout", *words, "--seed", "-1")
    assert refused.returncode == 2
    assert "--seed" in refused.stderr
