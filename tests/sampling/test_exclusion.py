"""Which relations hold an edge turned round, as `reverse_of` says."""

import pytest

from sampling.exclusion import Turns, turns_of
from storage.schema import Relation, RelationInfo
from storage.store import Store
from tests.data import small_store

A, B, C = Relation("u", "a", "v"), Relation("v", "b", "u"), Relation("u", "c", "u")


def info(relation: Relation, reverse_of: Relation | None) -> RelationInfo:
    """What the store says about a relation, without its files."""
    return RelationInfo.model_construct(
        relation=relation, reverse_of=reverse_of, num_edges=0, has_weight=False, has_timestamp=False, segments=()
    )


@pytest.mark.parametrize(
    ("infos", "wanted"),
    [
        ([info(A, None), info(B, A)], [((0,), (1,)), ((1,), (0,))]),
        ([info(A, B), info(B, A)], [((0,), (1,)), ((1,), (0,))]),
        ([info(A, None), info(C, C)], [((0,), ()), ((1,), (1,))]),
        # two relations that are both the reverse of a third hold the same edges
        (
            [info(A, None), info(B, A), info(Relation("v", "d", "u"), A)],
            [((0,), (1, 2)), ((1, 2), (0,)), ((1, 2), (0,))],
        ),
        ([info(A, None)], [((0,), ())]),
    ],
)
def test_reverses_are_found_in_either_direction(
    infos: list[RelationInfo], wanted: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    assert turns_of(infos) == tuple(Turns(same=same, turned=turned) for same, turned in wanted)


def test_an_undirected_store_is_its_own_reverse(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store.open(str(small_store(tmp_path_factory.mktemp("undirected"))))
    assert turns_of(store.relations) == (Turns(same=(0,), turned=(0,)),)
