"""Parts of a graph: label propagation that keeps to a size, over the edges of a store as they lie on disk.

    1. communities   every node alone; round by round each node joins the community that most of its neighbours are in,
                     where there is room, until few move
    2. cores         the largest communities, one for each part; all other nodes are free again
    3. parts         the same rounds once more, with more room: parts grow into the nodes around them

A node that no part reaches, such as one without in-edges, is in none. Every round reads the edges once, from the front;
only what is said of nodes is in memory. Nothing is drawn and nodes decide one after another, so the result depends on
the generation of the store and the settings alone.
Source: Meyerhenke, Sanders and Schulz, "Partitioning complex networks via size-constrained clustering", SEA 2014,
with cores in place of a coarsened graph; Raghavan, Albert and Kumara, "Near linear time algorithm to detect community
structures in large-scale networks", 2007.

Shapes: N nodes over all types, by global id; n nodes of a block, W places for voters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.csc_stream import target_blocks
from storage.errors import BadInput
from storage.graph import INT32_MAX
from storage.jit import kernel
from storage.progress import Progress
from storage.schema import NodeType
from storage.store import Store

VERSION = 1
"""of the parts that this file finds; another number for others"""
NONE = -1
"""part of a node that is in none"""
MOST_VOTERS = 64
"""neighbours of a node that have a vote: the last ones of its lists, which are the latest, or else the coldest"""
MOST_ROUNDS = 12
SETTLED_SHARE = 0.005
"""of the nodes: rounds end when no more move"""


def partition(store: Store, *, num_parts: int, progress: Progress) -> NDArray[np.int32]:
    """[N]: number of the part of every node, below `num_parts`; `NONE` for nodes in none.

    A part has at most `largest_part` nodes, of any types. Memory: 20 bytes a node, and 40 MiB for each relation into
    one type. Raises BadInput where no two nodes are in one part, DamagedStore as reading pages does.
    """
    num_nodes = sum(kind.num_live for kind in store.node_types)
    total = int(store.type_offsets[-1])
    dtype = np.int32 if total <= INT32_MAX else np.int64
    state = Propagation(label=np.arange(total, dtype=dtype), size=np.ones(total, dtype=dtype))
    run_rounds(state, store, bound=-(-num_nodes // num_parts), name="communities", progress=progress)
    state = state.cores(num_parts)
    if not state.size.size:
        raise BadInput(
            f"objective.num_parts={num_parts}",
            f"no two linked nodes in one part of {num_nodes} nodes",
            rule="a part is a community of the graph",
            remedy="set a smaller objective.num_parts, or leave out the task partition",
        )
    run_rounds(state, store, bound=largest_part(num_nodes, num_parts), name="parts", progress=progress)
    return state.label.astype(np.int32, copy=False)


def largest_part(num_nodes: int, num_parts: int) -> int:
    """Nodes that a part has at most: half as many again as parts have on average."""
    return -(-3 * num_nodes // (2 * num_parts))


@dataclass(frozen=True, eq=False)
class Propagation:
    """Where nodes are while they move; moves change the arrays."""

    label: NDArray[Any]
    """int32 or int64 [N]: number of each node's community; `NONE` for none"""
    size: NDArray[Any]
    """nodes of each community"""

    def cores(self, num_parts: int) -> "Propagation":
        """The largest communities, at most `num_parts`, under new numbers; of equal ones those of lower number."""
        kept = np.flatnonzero(self.size > 1)
        if kept.shape[0] > num_parts:
            sizes = self.size[kept]
            least = np.partition(sizes, -num_parts)[-num_parts]
            larger, equal = kept[sizes > least], kept[sizes == least]
            kept = np.sort(np.concatenate([larger, equal[: num_parts - larger.shape[0]]]))
        number = np.full(self.size.shape[0], NONE, dtype=self.label.dtype)
        number[kept] = np.arange(kept.shape[0])
        return Propagation(label=number[self.label], size=self.size[kept])


def run_rounds(state: Propagation, store: Store, *, bound: int, name: str, progress: Progress) -> None:
    """Move nodes until few do; no community takes in a node when it has `bound`."""
    total = int(store.type_offsets[-1])
    for number in range(MOST_ROUNDS):
        progress.stage(f"partition, {name}, round {number + 1}", total=total, unit="nodes")
        moved = 0
        for kind in store.node_types:
            for block in voter_blocks(store, kind, dtype=state.label.dtype):
                moved += move_block(block.first, block.voters, block.count, state.label, state.size, bound)
                progress.advance(block.count.shape[0])
        if moved <= SETTLED_SHARE * total:
            break


@dataclass(frozen=True, eq=False)
class VoterBlock:
    """Consecutive nodes of a type, and which neighbours of theirs have a vote."""

    first: int
    """global id of the first"""
    voters: NDArray[Any]
    """[n, W]: global ids; those of a node stand at the front of its row"""
    count: NDArray[np.int32]
    """[n]"""


def voter_blocks(store: Store, kind: NodeType, *, dtype: np.dtype[Any]) -> Iterator[VoterBlock]:
    """All nodes of a type in order; none where no relation leads to it. Relations and segments share the places."""
    into = [info for info in store.relations if info.relation.target == kind.name]
    if not into:
        return
    first_node = int(store.type_offsets[store.type_index(kind.name)])
    room = max(1, MOST_VOTERS // sum(len(info.segments) for info in into))
    streams = [target_blocks(store.place, info, num_targets=kind.num_nodes) for info in into]
    for blocks in zip(*streams, strict=True):
        num_nodes = blocks[0].degree.shape[0]
        voters = np.empty((num_nodes, room * sum(len(info.segments) for info in into)), dtype=dtype)
        count = np.zeros(num_nodes, dtype=np.int32)
        for info, block in zip(into, blocks, strict=True):
            first_source = int(store.type_offsets[store.type_index(info.relation.source)])
            for part in block.parts:
                enter_voters(part.pointers, part.first_edge, part.sources, first_source, room, voters, count)
        yield VoterBlock(first=first_node + blocks[0].first, voters=voters, count=count)


@kernel
def enter_voters(
    pointers: NDArray[np.int64],
    first_edge: int,
    sources: NDArray[Any],
    first_source: int,
    room: int,
    voters: NDArray[Any],
    count: NDArray[np.int32],
) -> None:
    """Of consecutive edges of a segment, enter those that are among the last `room` of their target."""
    last_edge = first_edge + sources.shape[0]
    for row in range(pointers.shape[0] - 1):
        begin = max(pointers[row], pointers[row + 1] - room, first_edge)
        end = min(pointers[row + 1], last_edge)
        for edge in range(begin, end):
            voters[row, count[row]] = first_source + sources[edge - first_edge]
            count[row] += 1


@kernel
def move_block(
    first: int,
    voters: NDArray[Any],
    count: NDArray[np.int32],
    label: NDArray[Any],
    size: NDArray[Any],
    bound: int,
) -> int:
    """Each node in turn joins the community of most votes that has room, or stays; how many moved.

    Of equal votes a node's own community wins, then the lower number.
    """
    names = np.empty(voters.shape[1], dtype=np.int64)
    votes = np.empty(voters.shape[1], dtype=np.int64)
    moved = 0
    for row in range(count.shape[0]):
        node = first + row
        own = label[node]
        num_names = 0
        for place in range(count[row]):
            voter = voters[row, place]
            name = label[voter]
            if name < 0 or voter == node or (name != own and size[name] >= bound):
                continue
            at = 0
            while at < num_names and names[at] != name:
                at += 1
            if at == num_names:
                names[at], votes[at] = name, 0
                num_names += 1
            votes[at] += 1
        best = -1
        for at in range(num_names):
            has_more = best < 0 or votes[at] > votes[best]
            is_equal = best >= 0 and votes[at] == votes[best] and names[best] != own
            if has_more or (is_equal and (names[at] == own or names[at] < names[best])):
                best = at
        if best >= 0 and names[best] != own:
            if own >= 0:
                size[own] -= 1
            size[names[best]] += 1
            label[node] = names[best]
            moved += 1
    return moved
