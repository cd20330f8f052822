"""Pairs of nodes whose edges no block may hold: the target edges of a batch, and those held out for good.

Excluding a pair excludes every parallel edge between it, in its relation and, turned round, in the reverse of that
relation. Edges are drawn first and excluded ones then dropped, so a row of a target may have one neighbour less than
others; a node that only dropped edges lead to does not enter the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.jit import kernel
from storage.schema import RelationInfo


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of one relation by (target, source): int64 [P] dense ids each."""

    target: NDArray[np.int64]
    source: NDArray[np.int64]

    @classmethod
    def of(cls, source: NDArray[np.int64], target: NDArray[np.int64]) -> "Pairs":
        """Sort pairs and drop repeats."""
        order = np.lexsort((source, target))
        source, target = source[order], target[order]
        fresh = np.ones(source.shape[0], dtype=np.bool_)
        fresh[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
        return cls(target=target[fresh], source=source[fresh])


@dataclass(frozen=True)
class Excluded:
    """What must be absent, relation by relation [R]; None where nothing is."""

    pairs: tuple[Pairs | None, ...]


@dataclass(frozen=True)
class Turns:
    """How the edges of one relation stand in the relations of a graph."""

    same: tuple[int, ...]
    """numbers of the relations that hold them as they are, itself among them"""
    turned: tuple[int, ...]
    """numbers of the relations that hold them turned round"""


def turns_of(infos: Sequence[RelationInfo]) -> tuple[Turns, ...]:
    """For every relation [R] the ones that hold its edges, as the store's `reverse_of` says, in either direction."""
    number = {info.relation: index for index, info in enumerate(infos)}
    reverses: list[set[int]] = [set() for _ in infos]
    for index, info in enumerate(infos):
        if info.reverse_of is not None:
            reverses[index].add(number[info.reverse_of])
            reverses[number[info.reverse_of]].add(index)
    found = []
    for index in range(len(infos)):
        reached = {(index, False)}
        ahead = [(index, False)]
        while ahead:
            here, is_turned = ahead.pop()
            for there in reverses[here]:
                if (there, not is_turned) not in reached:
                    reached.add((there, not is_turned))
                    ahead.append((there, not is_turned))
        found.append(
            Turns(
                same=tuple(sorted(there for there, is_turned in reached if not is_turned)),
                turned=tuple(sorted(there for there, is_turned in reached if is_turned)),
            )
        )
    return tuple(found)


def exclude_pairs(
    source: NDArray[np.int64], target: NDArray[np.int64], *, relation: int, turns: Sequence[Turns]
) -> Excluded:
    """Exclude the pairs source[i] -> target[i] (int64 [P] dense ids) of relation number `relation` everywhere.

    Args:
        turns: of every relation of the graph, as `turns_of` gives them.
    """
    if source.shape != target.shape:
        raise BadInput(
            "excluded pairs",
            f"{source.shape[0]} sources and {target.shape[0]} targets",
            rule="a pair has a source and a target",
            remedy="give as many of one as of the other",
        )
    as_it_is, turned_round = (source, target), (target, source)
    pairs: list[Pairs | None] = []
    for index in range(len(turns)):
        held = [as_it_is] * (index in turns[relation].same) + [turned_round] * (index in turns[relation].turned)
        if held and source.shape[0]:
            pairs.append(Pairs.of(*(np.concatenate(ends) for ends in zip(*held, strict=True))))
        else:
            pairs.append(None)
    return Excluded(pairs=tuple(pairs))


@kernel
def drop_pairs(
    nodes: NDArray[np.int64],
    first: int,
    first_source: int,
    pair_target: NDArray[np.int64],
    pair_source: NDArray[np.int64],
    room: NDArray[np.int32],
    count: NDArray[np.int32],
    ids: NDArray[np.int64],
    position: NDArray[np.int64],
) -> None:
    """Take excluded edges out of every row, closing up inside the row; `count` [n] is changed to what is left.

    Args:
        nodes: [n] global ids of the rows.
        first, first_source: global ids of the relation's first target and source.
        pair_target, pair_source: [P] of `Pairs`.
        room: [n + 1] where each row's entries of `ids` and `position` begin; its first `count` are filled.
    """
    num_pairs = pair_target.shape[0]
    for row in range(count.shape[0]):
        if count[row] == 0:
            continue
        node = nodes[row] - first
        begin = first_place(pair_target, 0, num_pairs, node)
        if begin == num_pairs or pair_target[begin] != node:
            continue
        end = first_place(pair_target, begin, num_pairs, node + 1)
        kept = room[row]
        for edge in range(room[row], room[row] + count[row]):
            source = ids[edge] - first_source
            place = first_place(pair_source, begin, end, source)
            if place == end or pair_source[place] != source:
                ids[kept] = ids[edge]
                position[kept] = position[edge]
                kept += 1
        count[row] = kept - room[row]


@kernel
def first_place(values: NDArray[np.int64], low: int, high: int, wanted: int) -> int:
    """The first place in [low, high) of ascending `values` that is not below `wanted`, else `high`."""
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low
