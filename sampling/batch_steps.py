"""What batches over stored topology do together: their look-ups of one kind are one look-up in a file.

Answers are laid out batch after batch in one array. Where that would take more than a given memory, batches follow
each other in groups.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.batch_frame import BatchFrame
from sampling.growing_batch import AbsorbScratch, GrowingBatch
from sampling.packed_sample import PackedSample
from storage.element_file import ElementFile
from storage.own_memory import own_array
from storage.read_pool import ReadPool

CACHED_BYTES = 8 << 20
"""of answers that cost no reads, for which a group need not be large"""


@dataclass
class SuperbatchCounters:
    """What was done, and the time of each part; what was read is in `StoredTopology.counters`."""

    superbatches: int = 0
    batches: int = 0
    nodes: int = 0
    edges: int = 0
    sweeps: int = 0
    """groups of batches that took a step together"""
    span_seconds: float = 0.0
    draw_seconds: float = 0.0
    read_seconds: float = 0.0
    absorb_seconds: float = 0.0
    pack_seconds: float = 0.0
    """with the reading of out-degrees"""
    most_state_bytes: int = 0
    """of batches in flight, those just finished included, but for a group of them that is in both states"""
    most_answer_bytes: int = 0
    """of one group"""


class BatchSteps:
    """The steps of batches of one frame.

    Args:
        frame: of the batches.
        num_threads: that compute.
        answer_bytes: memory for the answers of a group.
    """

    def __init__(self, frame: BatchFrame, *, num_threads: int, answer_bytes: int) -> None:
        self.counters = SuperbatchCounters()
        self._frame = frame
        self._answer_bytes = answer_bytes
        self._threads = ReadPool(num_threads=num_threads)
        self._scratch: SimpleQueue[AbsorbScratch] = SimpleQueue()
        for _ in range(num_threads):
            self._scratch.put(AbsorbScratch(frame.node_dtype))

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def span(self, batches: Sequence[GrowingBatch]) -> None:
        """Look up the new nodes of every batch: first edge and degree, of whole batches the degree only."""
        began = time.perf_counter()
        sizes = self._sizes(batches, GrowingBatch.count_unspanned)
        costs = [
            self._frame.id_dtype(relation.target_type).itemsize + relation.indptr.dtype.itemsize + 4
            for relation in self._frame.relations
        ]
        for group in self._groups(sizes, costs, [relation.indptr for relation in self._frame.relations]):
            self._span_group(batches[group], sizes[group])
        self.counters.span_seconds += time.perf_counter() - began

    def _span_group(self, batches: Sequence[GrowingBatch], sizes: NDArray[np.int64]) -> None:
        whole = all(batch.is_whole for batch in batches)
        begins, degrees = [], []
        for index, relation in enumerate(self._frame.relations):
            dtype = self._frame.id_dtype(relation.target_type)
            fill = partial(GrowingBatch.unspanned, relation=index)
            at, parts = self._filled(batches, sizes[:, index], dtype, fill)
            begin = own_array(0 if whole else at.shape[0], relation.indptr.dtype)
            degree = own_array(at.shape[0], np.int32)
            relation.spans(at, begin=begin, degree=degree)
            begins.append([begin[part] for part in parts])
            degrees.append([degree[part] for part in parts])
        for number, batch in enumerate(batches):
            batch.add_spans([begin[number] for begin in begins], [degree[number] for degree in degrees])

    def grow(self, batches: Sequence[GrowingBatch]) -> None:
        """Sample the next hop of every batch, whose nodes are all looked up."""
        sizes = self._sizes(batches, GrowingBatch.count_draws)
        costs = [relation.edge_dtype.itemsize + 4 * (relation.weight is not None) for relation in self._frame.relations]
        for group in self._groups(sizes, costs, [relation.indices for relation in self._frame.relations]):
            self._grow_group(batches[group], sizes[group])

    def _grow_group(self, batches: Sequence[GrowingBatch], sizes: NDArray[np.int64]) -> None:
        sources: list[NDArray[Any]] = []
        weights: list[NDArray[np.float32] | None] = []
        places: list[list[slice]] = []
        for index, relation in enumerate(self._frame.relations):
            began = time.perf_counter()
            fill = partial(GrowingBatch.draw, relation=index)
            position, parts = self._filled(batches, sizes[:, index], relation.edge_dtype, fill)
            drawn = time.perf_counter()
            weight = None
            if relation.weight is not None:
                weight = own_array(position.shape[0], np.float32)
                relation.weight.gather(position, weight)
            relation.indices.replace(position)
            sources.append(position)
            weights.append(weight)
            places.append(parts)
            self.counters.draw_seconds += drawn - began
            self.counters.read_seconds += time.perf_counter() - drawn

        def absorb(number: int) -> None:
            parts = [of_relation[number] for of_relation in places]
            scratch = self._scratch.get()
            try:
                batches[number].absorb(
                    [ids[part] for ids, part in zip(sources, parts, strict=True)],
                    [None if weight is None else weight[part] for weight, part in zip(weights, parts, strict=True)],
                    scratch,
                )
            finally:
                self._scratch.put(scratch)

        began = time.perf_counter()
        self._threads.run(absorb, len(batches))
        self.counters.absorb_seconds += time.perf_counter() - began
        self.counters.sweeps += 1

    def pack(self, batches: list[GrowingBatch]) -> list[PackedSample]:
        """Finish whole batches; they are taken out of the list, so that they go as their packed forms come."""
        began = time.perf_counter()
        sizes = self._sizes(batches, GrowingBatch.count_sources)
        costs = [self._frame.id_dtype(relation.source_type).itemsize + 4 for relation in self._frame.relations]
        packed: list[PackedSample] = []
        for group in self._groups(sizes, costs, [relation.out_degree for relation in self._frame.relations]):
            packed += self._pack_group(batches[: group.stop - group.start], sizes[group])
            del batches[: group.stop - group.start]
        self.counters.superbatches += 1
        self.counters.batches += len(packed)
        self.counters.nodes += sum(batch.nodes.shape[0] for batch in packed)
        self.counters.edges += sum(batch.num_edges for batch in packed)
        self.counters.pack_seconds += time.perf_counter() - began
        return packed

    def _pack_group(self, batches: Sequence[GrowingBatch], sizes: NDArray[np.int64]) -> list[PackedSample]:
        degrees = []
        for index, relation in enumerate(self._frame.relations):
            dtype = self._frame.id_dtype(relation.source_type)
            at, parts = self._filled(batches, sizes[:, index], dtype, partial(GrowingBatch.sources, relation=index))
            degree = own_array(at.shape[0], np.int32)
            relation.out_degrees(at, degree=degree)
            degrees.append([degree[part] for part in parts])
        packed: list[PackedSample | None] = [None] * len(batches)

        def pack(number: int) -> None:
            packed[number] = batches[number].pack([of_relation[number] for of_relation in degrees])

        self._threads.run(pack, len(batches))
        return [batch for batch in packed if batch is not None]

    def _sizes(self, batches: Sequence[GrowingBatch], count: Callable[[GrowingBatch, int], int]) -> NDArray[np.int64]:
        """[batches, R] places that will be looked up."""
        sizes = np.zeros((len(batches), len(self._frame.relations)), dtype=np.int64)

        def fill(number: int) -> None:
            for index in range(sizes.shape[1]):
                sizes[number, index] = count(batches[number], index)

        self._threads.run(fill, len(batches))
        return sizes

    def _groups(self, sizes: NDArray[np.int64], costs: Sequence[int], files: Sequence[ElementFile]) -> list[slice]:
        """Groups of batches whose answers fit: [R] bytes of one, and files that they come from."""
        num_bytes = sizes @ np.asarray(costs, dtype=np.int64)
        cached = all(file.in_memory for file in files)
        groups = divided(num_bytes, min(CACHED_BYTES, self._answer_bytes) if cached else self._answer_bytes)
        most = max((int(num_bytes[group].sum()) for group in groups), default=0)
        self.counters.most_answer_bytes = max(self.counters.most_answer_bytes, most)
        return groups

    def _filled(
        self,
        batches: Sequence[GrowingBatch],
        sizes: NDArray[np.int64],
        dtype: np.dtype[Any],
        fill: Callable[[GrowingBatch, NDArray[Any]], None],
    ) -> tuple[NDArray[Any], list[slice]]:
        """What every batch writes, one behind the other, and where each lies."""
        ends = np.cumsum(sizes)
        parts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
        array = own_array(int(sizes.sum()), dtype)
        self._threads.run(lambda number: fill(batches[number], array[parts[number]]), len(batches))
        return array, parts


def divided(costs: NDArray[np.int64], budget: int) -> list[slice]:
    """Consecutive groups of things whose costs together are within the budget, or of one thing."""
    groups = []
    begin, spent = 0, 0
    for number, cost in enumerate(costs.tolist()):
        if number > begin and spent + cost > budget:
            groups.append(slice(begin, number))
            begin, spent = number, 0
        spent += cost
    if begin < len(costs):
        groups.append(slice(begin, len(costs)))
    return groups
