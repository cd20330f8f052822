"""How often a node's row is expected to be read: the order of ids inside a segment.

A walk of the sampler from uniformly drawn seeds reaches node u in hop l + 1 with expected multiplicity
`p_{l+1}(u) = sum over v with u in N(v) of p_l(v) * min(1, k_l / deg v)`, over all relations, where `deg v` is
the in-degree of v in the relation and k_l the fan-out of hop l; p_0 is the same for all nodes of all types.
The hotness of u is the sum of its p_l. This is the expectation of neighbour sampling with a fan-out per hop
(GraphSAGE, NeurIPS 2017, section 3.1).

All arithmetic is in unsigned 64-bit fixed point: integer sums do not depend on the order of edges, workers or
files, so neither does the order of the nodes. Each level has as many fraction bits as cannot overflow: a node
gathers at most (its out-edges) x (the largest p_l), both known exactly before the level is summed.

Per hop: share [num_targets] of every relation, its edges streamed, reached [num_sources] added up. Arrays are
files; a worker holds one `reached` of its own.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel
from storage.stages.crew import Crew
from storage.stages.degrees import Degrees, add_up, share_slices
from storage.stages.edge_view import EdgeView, Slice
from storage.stages.runs import map_array, write_array

ALL_NEIGHBOURS = -1
MAX_UINT64 = (1 << 64) - 1
_PIECE = 1 << 20


@dataclass(frozen=True)
class _Task:
    view: EdgeView
    pieces: list[Slice]
    num_sources: int
    share: str
    path: str


def expected_accesses(
    folder: str,
    *,
    views: Sequence[tuple[EdgeView, Degrees]],
    num_nodes: Mapping[str, int],
    fanout: Sequence[int],
    crew: Crew,
) -> dict[str, str]:
    """Hotness of every node in fixed point, comparable over all types; the scale is arbitrary.

    Args:
        views: all relations as they will be sampled, reverses included, with their degrees.
        num_nodes: nodes of each type.
        fanout: neighbours drawn per node and relation in each hop, from the seeds outward; -1 for all.
        folder: for the arrays.
        crew: told the number of edges done; each is visited once a hop.

    Returns:
        For each type a file of uint64 [num_nodes] by input position.
    """
    max_out_edges = _max_out_edges(views, num_nodes=num_nodes)
    limit = MAX_UINT64 // (len(fanout) + 1)  # of one level, so that the sum over levels fits too
    first = 1 << ((limit // max_out_edges).bit_length() - 1)
    levels = {name: f"{folder}/{name}.level" for name in num_nodes}
    totals = {name: f"{folder}/{name}.total" for name in num_nodes}
    for name, count in num_nodes.items():
        for path in (levels[name], totals[name]):
            _write_pieces(path, count, lambda start, stop: np.full(stop - start, first, dtype=np.uint64))
    for k in fanout:
        reached = _spread(
            views, k=k, levels=levels, num_nodes=num_nodes, folder=folder, crew=crew,
        )  # fmt: skip
        largest = max(_largest(path) for path in reached.values())
        shift = np.uint64(0)
        while (largest >> int(shift)) * max_out_edges > limit:
            shift += np.uint64(1)
        for name, count in num_nodes.items():
            _next_level(totals[name], reached[name], levels[name], count, shift)
    return totals


def _spread(
    views: Sequence[tuple[EdgeView, Degrees]],
    *,
    k: int,
    levels: Mapping[str, str],
    num_nodes: Mapping[str, int],
    folder: str,
    crew: Crew,
) -> dict[str, str]:
    """What one hop brings to each node of each type: files of uint64 [num_nodes]."""
    parts: dict[str, list[str]] = {name: [] for name in num_nodes}
    for view, degrees in views:
        source, target = view.relation.source, view.relation.target
        share = f"{folder}/{view.relation.folder}.share"
        level, degree = map_array(levels[target], np.uint64), map_array(degrees.in_degree, np.uint32)
        _write_shares(share, level, degree, k)
        groups = share_slices(view, crew, private_bytes=8 * num_nodes[source])
        tasks = [
            _Task(view, pieces, num_nodes[source], share, f"{folder}/{view.relation.folder}.{number}")
            for number, pieces in enumerate(groups)
        ]
        for task, _ in zip(tasks, crew.executor.map(_gather_slices, tasks), strict=True):
            crew.advance(sum(piece.count for piece in task.pieces))
        parts[source] += [task.path for task in tasks]
    reached = {}
    for name, count in num_nodes.items():
        reached[name] = f"{folder}/{name}.reached"
        if parts[name]:
            add_up(parts[name], reached[name], dtype=np.uint64)
        else:
            _write_pieces(reached[name], count, lambda a, b: np.zeros(b - a, dtype=np.uint64))
        for path in parts[name]:
            os.remove(path)
    return reached


def _gather_slices(task: _Task) -> None:
    reached = np.zeros(task.num_sources, dtype=np.uint64)
    share = map_array(task.share, np.uint64)
    for piece in task.pieces:
        edges = task.view.read(piece)
        _gather(reached, share, edges.source, edges.target)
    write_array(task.path, reached)


def _max_out_edges(views: Sequence[tuple[EdgeView, Degrees]], *, num_nodes: Mapping[str, int]) -> int:
    """The most out-edges a node has over all relations, at least 1."""
    most = 1
    for name, count in num_nodes.items():
        degrees = [map_array(found.out_degree, np.uint32) for view, found in views if view.relation.source == name]
        for start in range(0, count if degrees else 0, _PIECE):
            out_edges = np.sum([degree[start : start + _PIECE] for degree in degrees], axis=0, dtype=np.int64)
            most = max(most, int(out_edges.max()))
    return most


def _write_shares(path: str, level: NDArray[np.uint64], degree: NDArray[np.uint32], k: int) -> None:
    _write_pieces(path, len(level), lambda start, stop: _shares(level[start:stop], degree[start:stop], k))


def _next_level(total: str, reached: str, level: str, count: int, shift: np.uint64) -> None:
    old, more = map_array(total, np.uint64), map_array(reached, np.uint64)
    _write_pieces(f"{total}.next", count, lambda a, b: (old[a:b] + more[a:b]) >> shift)
    _write_pieces(level, count, lambda a, b: more[a:b] >> shift)
    os.replace(f"{total}.next", total)


def _largest(path: str) -> int:
    values = map_array(path, np.uint64)
    return max(int(values[start : start + _PIECE].max()) for start in range(0, len(values), _PIECE))


def _write_pieces(path: str, count: int, make: Callable[[int, int], NDArray[np.uint64]]) -> None:
    with open(path, "wb") as file:
        for start in range(0, count, _PIECE):
            file.write(make(start, min(start + _PIECE, count)).data)


@kernel
def _shares(level: NDArray[np.uint64], degree: NDArray[np.uint32], k: int) -> NDArray[np.uint64]:
    """What each target hands to each of its in-edges: floor(level * min(1, k / degree)), [num_targets]."""
    share = level.copy()
    if k == ALL_NEIGHBOURS:
        return share
    for v in range(len(level)):
        if degree[v] > k:
            # quotient and remainder apart: level * k would not fit
            d = np.uint64(degree[v])
            quotient = level[v] // d
            rest = level[v] - quotient * d
            share[v] = quotient * np.uint64(k) + rest * np.uint64(k) // d
    return share


@kernel
def _gather(
    reached: NDArray[np.uint64],
    share: NDArray[np.uint64],
    source: NDArray[np.uint32],
    target: NDArray[np.uint32],
) -> None:
    for i in range(len(source)):
        reached[source[i]] += share[target[i]]
