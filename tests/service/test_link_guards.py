"""Link prediction's guards: no held-out edge is given away, ties are ties, and settings without a sense are refused."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.evaluation import EvaluationConfig
from service.link_decoders import Examples, make_decoder
from service.link_problem import LinkConfig
from service.link_ranking import questions, rank
from service.link_tables import relation_index
from storage.errors import BadInput
from storage.store import Store
from tests.service.link_graphs import NUM_NODES, directed, numbers, problem_of, random_pairs, table_of


def test_a_reverse_in_the_store_gives_a_held_out_edge_away_though_no_symmetry_is_declared(tmp_path: Path) -> None:
    pairs = random_pairs(60, seed=3)
    store = directed(tmp_path, [(b, a) for a, b in pairs[:3]] + pairs[10:])
    edges = table_of(pairs[:10], tmp_path / "test.parquet")
    with pytest.raises(BadInput, match=r"3 of 10 pairs are edges of .*either way round"):
        problem_of(store, LinkConfig(edges=edges))
    problem = problem_of(store, LinkConfig(edges=edges, in_store="keep"))
    assert (problem.num_in_store, problem.num_reversed_in_store) == (0, 3)
    free = table_of(pairs[3:10], tmp_path / "free.parquet")
    with pytest.raises(BadInput, match=r"train\.parquet.*50 of 50 pairs are edges"):
        problem_of(store, LinkConfig(edges=free, val_edges=table_of(pairs[10:], tmp_path / "train.parquet")))


def test_a_pair_that_is_held_out_twice_is_refused_either_way_round(tmp_path: Path) -> None:
    pairs = random_pairs(60, seed=3)
    store = directed(tmp_path, pairs[20:])
    val = table_of([(b, a) for a, b in pairs[8:15]], tmp_path / "val.parquet")
    with pytest.raises(BadInput, match=r"evaluation\.link\.val_edges.*2 of 7 pairs are in"):
        problem_of(store, LinkConfig(edges=table_of(pairs[:10], tmp_path / "test.parquet"), val_edges=val))


def test_no_reverse_of_an_edge_is_a_negative_or_a_wrong_answer(tmp_path: Path) -> None:
    pairs = random_pairs(300, seed=5)
    store = directed(tmp_path, pairs[30:])
    number = numbers(store)
    problem = problem_of(store, LinkConfig(edges=table_of(pairs[:30], tmp_path / "test.parquet"), num_draws=2))
    taken = {frozenset(pair) for pair in pairs}
    assert not problem.graph.symmetric
    for draw in problem.draws:
        assert not taken & {frozenset(number[pair].tolist()) for pair in draw.negatives}
        masked = set(zip(draw.asked.masked_source.tolist(), draw.asked.masked_candidate.tolist(), strict=True))
        for row, source in enumerate(number[draw.asked.sources].tolist()):
            for column, target in enumerate(number[draw.asked.candidates].tolist()):
                assert ((row, column) in masked) == (source == target or frozenset((source, target)) in taken)


def test_beyond_the_limit_sources_are_asked_for_all_of_their_held_out_targets(tmp_path: Path) -> None:
    pairs = random_pairs(300, seed=5)
    store = directed(tmp_path, pairs[200:])
    number = numbers(store)
    edges = table_of(pairs[:200], tmp_path / "test.parquet")
    problem = problem_of(store, LinkConfig(edges=edges, max_edges=50))
    assert len(problem.positives) == 50
    for draw in problem.draws:
        asked = draw.asked
        found = [(number[asked.sources[s]], number[t]) for s, t in zip(asked.source_of, asked.targets, strict=True)]
        sources = {source for source, _ in found}
        assert 30 < len(found) <= 50
        assert sorted(found) == sorted(pair for pair in pairs[:200] if pair[0] in sources)
    hub = table_of([(0, node) for node in range(1, NUM_NODES) if (0, node) not in pairs], tmp_path / "hub.parquet")
    wide = problem_of(store, LinkConfig(edges=hub, max_edges=2)).draws[0].asked
    assert len(wide.targets) == NUM_NODES - 1 - sum(a == 0 for a, _ in pairs)


@pytest.mark.parametrize("dim", [1, 7, 257])
def test_equal_rows_tie_in_whatever_order_their_products_are_summed(dim: int) -> None:
    rng = np.random.default_rng(dim)
    left_QD = rng.normal(size=(9, dim))
    right = np.repeat(rng.normal(size=(1, dim)), 60, axis=0)
    pairs = np.stack([np.arange(9).repeat(3), np.tile([50, 51, 52], 9)], axis=1)
    asked = questions(pairs, candidates=np.arange(41), excluded=pairs[:0])
    ranks = rank(asked, left_QD=left_QD, right_CD=right[:41], right_PD=right[asked.targets])
    assert (ranks.alone == 1 + 41 / 2).all()
    assert (ranks.together == 1 + 41 / 2 + 1).all()
    row = right[:1].astype(np.float32)
    decoder = make_decoder(
        "dot", lambda ids: row[np.zeros_like(ids)], lambda ids: row[np.zeros_like(ids)],
        train=Examples(pairs, pairs), val=Examples(pairs, pairs), strengths=(1.0,),
    )  # fmt: skip
    assert len(set(decoder.scores(rng.integers(0, 60, (9001, 2))).tolist())) == 1


def test_a_store_without_relations_is_refused(tmp_path: Path) -> None:
    store = directed(tmp_path, [(0, 1)])
    bare = Store(
        store.place, store.generation.model_copy(update={"relations": ()}), generation_xxh64=store.generation_xxh64
    )
    for name in (None, "node:to:node"):
        with pytest.raises(BadInput, match="relations of this store: none"):
            relation_index(bare, name)


@pytest.mark.parametrize(
    "section",
    [
        {"few_shot": {"shots": [0]}},
        {"few_shot": {"shots": [1, -1]}},
        {"knn": {"neighbors": [0]}},
        {"link": {"top": [0]}},
        {"strengths": [0]},
    ],
)
def test_numbers_that_mean_nothing_are_refused(section: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="greater than"):
        EvaluationConfig.model_validate(section)
