"""Link prediction: negatives that are none of the edges, and figures counted by hand over all pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from service.evaluation_rows import Rows
from service.link_decoders import Decoder, Examples, make_decoder
from service.link_prediction import LinkTask
from service.link_problem import LinkConfig
from service.link_tables import read_pairs
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from storage.store import Store
from tests.service.link_graphs import NUM_NODES, numbers, problem_of, table_of, undirected

DIM = 5


def config(folder: Path, **keys: object) -> LinkConfig:
    given = {"edges": str(folder / "test.parquet"), "val_edges": str(folder / "val.parquet"), "top": (1, 5), **keys}
    return LinkConfig.model_validate(given)


def test_held_out_pairs_are_read_once_each_without_loops(tmp_path: Path) -> None:
    store, _, _, test = undirected(tmp_path)
    number = numbers(store)
    pairs = read_pairs(store, 0, str(tmp_path / "test.parquet"))
    assert len(pairs) == len(test)
    assert {frozenset(number[pair].tolist()) for pair in pairs} == {frozenset(pair) for pair in test}


def test_negatives_are_pairs_of_different_nodes_that_are_no_edge_and_not_held_out(tmp_path: Path) -> None:
    store, train, val, test = undirected(tmp_path)
    number = numbers(store)
    taken = {frozenset(pair) for pair in (*train, *val, *test)}
    problem = problem_of(store, config(tmp_path, scores=("hadamard",), num_draws=4))
    for draw in problem.draws:
        assert len(draw.negatives) == len(problem.positives) == len(test)
        for pairs in (draw.negatives, draw.train_negatives, draw.val_negatives):
            found = [frozenset(number[pair].tolist()) for pair in pairs]
            assert not taken & set(found)
            assert all(len(pair) == 2 for pair in found)
        assert {frozenset(number[pair].tolist()) for pair in draw.train} <= {frozenset(pair) for pair in train}
    assert not np.array_equal(problem.draws[0].negatives, problem.draws[1].negatives)
    again = problem_of(store, config(tmp_path, scores=("hadamard",), num_draws=4))
    assert np.array_equal(problem.draws[3].negatives, again.draws[3].negatives)


def test_negatives_are_uniform_over_the_free_pairs(tmp_path: Path) -> None:
    store, train, val, test = undirected(tmp_path)
    graph = problem_of(store, config(tmp_path)).graph
    num_free = NUM_NODES * (NUM_NODES - 1) // 2 - len(train) - len(val) - len(test)
    drawn = graph.negatives(50 * num_free, key=np.uint64(9))
    counts = np.unique(drawn[:, 0] * NUM_NODES + drawn[:, 1], return_counts=True)[1]
    assert len(counts) == num_free
    statistic = float(((counts - 50.0) ** 2 / 50.0).sum())
    assert abs(statistic - (num_free - 1)) < 5 * (2 * (num_free - 1)) ** 0.5  # chi-square, mean and deviation


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_figures_are_those_counted_over_all_pairs(tmp_path: Path, score: str) -> None:
    store, train, val, test = undirected(tmp_path)
    number = numbers(store)
    x_ND = np.random.default_rng(3).normal(size=(NUM_NODES, DIM)).astype(np.float32)
    x_ND[7] = x_ND[8]  # ties
    problem = problem_of(store, config(tmp_path, scores=(score,), num_draws=1))
    task = LinkTask(problem, score=score, strengths=(1.0,))  # type: ignore[arg-type]
    ids = task.wanted[0]
    task.score(Rows(name="raw", ids=[ids], x=[x_ND[number[ids]]], seconds=0.0), NoProgress())
    result = task.report().results[0].figures

    exact = x_ND.astype(np.float64)
    if score == "cosine":
        exact = (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float64)
    value = np.round(exact @ exact.T, 12)
    positive = [value[a, b] for a, b in test]
    negative = [value[number[a], number[b]] for a, b in problem.draws[0].negatives]
    auc = np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative])
    assert result["auc"].mean == pytest.approx(100 * auc)
    ordered = sorted([(p, 1) for p in positive] + [(n, 0) for n in negative], reverse=True)
    precision = [sum(true for _, true in ordered[: place + 1]) / (place + 1) for place in range(len(ordered))]
    ap = np.mean([precision[place] for place, (_, true) in enumerate(ordered) if true])
    assert result["ap"].mean == pytest.approx(100 * ap)

    known = {node: {node} for node in range(NUM_NODES)}
    wanted: dict[int, set[int]] = {}
    for a, b in (*train, *val):
        known[a].add(b)
        known[b].add(a)
    for a, b in test:
        wanted.setdefault(a, set()).add(b)
        wanted.setdefault(b, set()).add(a)

    def place_of(node: int, target: int, candidates: set[int]) -> float:
        higher = sum(bool(value[node, other] > value[node, target]) for other in candidates)
        return 1 + higher + 0.5 * sum(bool(value[node, other] == value[node, target]) for other in candidates)

    alone, recalls = [], []
    for node, targets in wanted.items():
        free = set(range(NUM_NODES)) - known[node]
        alone += [place_of(node, target, free - targets) for target in targets]
        recalls.append(np.mean([place_of(node, target, free - {target}) <= 5 for target in targets]))
    assert result["mrr"].mean == pytest.approx(100 * np.mean(1 / np.array(alone)))
    assert result["hits@1"].mean == pytest.approx(100 * np.mean(np.array(alone) <= 1))
    assert result["hits@5"].mean == pytest.approx(100 * np.mean(np.array(alone) <= 5))
    assert result["recall@5"].mean == pytest.approx(100 * np.mean(recalls))


def test_rows_that_are_all_alike_are_worth_chance_and_popularity_is_reported_beside(tmp_path: Path) -> None:
    store, train, _, _ = undirected(tmp_path)
    task = LinkTask(problem_of(store, config(tmp_path)), score="cosine", strengths=(1.0,))
    ids = task.wanted[0]
    task.score(Rows(name="trained", ids=[ids], x=[np.ones((len(ids), 3), np.float32)], seconds=0.0), NoProgress())
    report = task.report()
    assert [result.rows for result in report.results] == ["trained", "popularity"]
    assert report.mean("trained", "auc") == pytest.approx(50.0)
    assert report.mean("trained", "hits@1") == 0.0
    assert len(report.results[0].figures["auc"].values) == 3
    assert report.settings["edges"] == 25
    degree = np.bincount(np.array(train).ravel(), minlength=NUM_NODES)
    number = numbers(store)
    problem = problem_of(store, config(tmp_path))
    for draw, auc in zip(problem.draws, report.results[1].figures["auc"].values, strict=True):
        values = [
            [(1 + degree[number[a]]) * degree[number[b]] for a, b in pairs]
            for pairs in (problem.positives, draw.negatives)
        ]
        wanted = np.mean([(p > n) + 0.5 * (p == n) for p in values[0] for n in values[1]])
        assert auc == pytest.approx(100 * wanted)


def test_targets_are_ranked_among_so_many_candidates_as_are_asked_for(tmp_path: Path) -> None:
    store, _, _, _ = undirected(tmp_path)
    problem = problem_of(store, config(tmp_path, num_candidates=10, max_edges=4))
    assert [len(draw.asked.candidates) for draw in problem.draws] == [10, 10, 10]
    assert len(problem.positives) == 4
    assert problem.num_available == 25
    assert not np.array_equal(problem.draws[0].asked.candidates, problem.draws[1].asked.candidates)


def test_a_learned_score_finds_the_columns_that_matter() -> None:
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(400, 8)).astype(np.float32)
    # nodes are joined where column 2 agrees in sign; the other columns are noise
    drawn = rng.integers(0, 400, (4000, 2))
    joined = x_ND[drawn[:, 0], 2] * x_ND[drawn[:, 1], 2] > 0
    examples = Examples(drawn[joined], drawn[~joined])
    decoder = make_decoder(
        "hadamard",
        lambda ids: x_ND[ids],
        lambda ids: x_ND[ids],
        train=examples,
        val=Examples(drawn[:0], drawn[:0]),
        strengths=(0.1, 10.0),
    )
    unit = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    weights = decoder.left(np.arange(400)) / unit
    assert np.allclose(weights, weights[:1], rtol=1e-3)
    assert weights[0, 2] > 5 * np.abs(np.delete(weights[0], 2)).max()
    assert np.allclose(decoder.right(np.arange(400)), unit)
    pairs = drawn[:50]
    expected = (unit[pairs[:, 0]] * unit[pairs[:, 1]] * weights[0]).sum(1)
    assert np.allclose(decoder.scores(pairs), expected, rtol=1e-4, atol=1e-6)


def test_the_strength_of_a_learned_score_is_chosen_on_the_validation_pairs() -> None:
    seen: list[NDArray[np.int64]] = []

    def rows(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append(ids)
        return np.random.default_rng(5).normal(size=(60, 4)).astype(np.float32)[ids]

    train = Examples(np.arange(20).reshape(10, 2), np.arange(20, 40).reshape(10, 2))
    val = Examples(np.arange(40, 50).reshape(5, 2), np.arange(50, 60).reshape(5, 2))
    for given in (val, Examples(val.positives[:0], val.negatives[:0])):
        seen.clear()
        decoder = make_decoder("hadamard", rows, rows, train=train, val=given, strengths=(1.0,))
        assert isinstance(decoder, Decoder)
        assert (np.concatenate(seen).max() >= 40) == bool(len(given.positives))


def bipartite(folder: Path) -> Store:
    """Users read items; both number from u0, i0 and the store holds the reverse too."""
    rng = np.random.default_rng(2)
    users, items = [f"u{n}" for n in range(12)], [f"i{n}" for n in range(9)]
    pq.write_table(pa.table({"id": users}), folder / "users.parquet")
    pq.write_table(pa.table({"id": items}), folder / "items.parquet")
    drawn = sorted({(int(a), int(b)) for a, b in zip(rng.integers(0, 12, 60), rng.integers(0, 9, 60), strict=True)})
    held = drawn[::4]
    for name, pairs in (("train", [pair for pair in drawn if pair not in held]), ("test", held)):
        columns = {"src": [users[a] for a, _ in pairs], "dst": [items[b] for _, b in pairs]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    settings = IngestSettings(
        nodes={"user": str(folder / "users.parquet"), "item": str(folder / "items.parquet")},
        edges={"user:reads:item": str(folder / "train.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))


def test_a_relation_between_two_types_is_asked_from_its_sources_only(tmp_path: Path) -> None:
    store = bipartite(tmp_path)
    assert len(store.relations) == 2
    given = LinkConfig(edges=str(tmp_path / "test.parquet"), num_draws=1, top=(3,))
    problem = problem_of(store, given)
    held = pq.read_table(tmp_path / "test.parquet")
    users, items = (store.node_column(name, "id").to_pylist() for name in ("user", "item"))
    asked = problem.draws[0].asked
    found = {(users[asked.sources[p]], items[t]) for p, t in zip(asked.source_of, asked.targets, strict=True)}
    assert found == set(zip(held["src"].to_pylist(), held["dst"].to_pylist(), strict=True))
    task = LinkTask(problem, score="dot", strengths=(1.0,))
    wanted = [task.wanted[0], task.wanted[1]]
    rows = [np.ones((len(ids), dim), np.float32) for ids, dim in zip(wanted, (3, 4), strict=True)]
    task.score(Rows(name="raw", ids=wanted, x=rows, seconds=0.0), NoProgress())
    task.score(Rows(name="trained", ids=wanted, x=[rows[0], rows[1][:, :3]], seconds=0.0), NoProgress())
    raw, trained, popularity = task.report().results
    assert (raw.dim, raw.note) == (None, "rows of the two node types have 3 and 4 columns")
    assert trained.figures["auc"].mean == pytest.approx(50.0)
    assert popularity.figures["auc"].mean != pytest.approx(50.0)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    store, train, _, _ = undirected(tmp_path)
    with pytest.raises(BadInput, match=r"evaluation\.link\.edges: not given"):
        problem_of(store, LinkConfig())
    leaking = table_of([train[0], (train[1][1], train[1][0]), (0, 0)], tmp_path / "leaking.parquet")
    with pytest.raises(BadInput, match="2 of 2 pairs are edges"):
        problem_of(store, LinkConfig(edges=leaking))
    assert problem_of(store, LinkConfig(edges=leaking, in_store="keep")).num_in_store == 2
    with pytest.raises(BadInput, match=r"strange\.parquet, column dst: .*unknown id 999900"):
        problem_of(store, LinkConfig(edges=table_of([(1, 9999)], tmp_path / "strange.parquet")))
    with pytest.raises(BadInput, match="self-loops"):
        problem_of(store, LinkConfig(edges=table_of([(1, 1)], tmp_path / "loops.parquet")))
    with pytest.raises(BadInput, match=r"relations of this store: node:to:node"):
        problem_of(store, config(tmp_path, relation="a:b:c"))


def test_a_graph_without_a_free_pair_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0, 100, 200]}), tmp_path / "nodes.parquet")
    settings = IngestSettings(
        nodes={"node": str(tmp_path / "nodes.parquet")},
        edges={"node:to:node": table_of([(0, 1), (1, 2)], tmp_path / "train.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(tmp_path / "store"))
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(BadInput, match="no pair without an edge"):
        problem_of(store, LinkConfig(edges=table_of([(0, 2)], tmp_path / "test.parquet")))
