"""Neighbour sampling with the topology on disk: many batches at once, hop by hop, the same samples bit for bit.

A hop of one batch touches a page here and a page there, a hop of K batches most pages; so all batches in flight take a
step together, and a step reads each file once, in order:

    1. span    every batch's new nodes -> first edge and degree, from indptr
    2. draw    -> positions of the next hop, batch by batch
    3. read    positions of all batches -> sources, and weights, in the order of the file
    4. absorb  sources -> rows, batch by batch

`stream` keeps as many superbatches in flight as there are hops, each a hop ahead of the next: then one step, which is
one sweep of the files, finishes a superbatch, where sampling it alone takes a sweep for each hop.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.batch_frame import BatchFrame, Step
from sampling.batch_steps import BatchSteps, SuperbatchCounters
from sampling.fanouts import HopFanout, fanouts_by_relation
from sampling.growing_batch import GrowingBatch
from sampling.neighbors import Sample
from sampling.packed_sample import PackedSample
from storage.stored_topology import StoredTopology

ANSWER_BYTES = 64 << 20
AnyStep = Step | tuple[int, int, NDArray[np.int64]]


class SampledSuperbatch:
    """The sampled batches of consecutive steps; each is released when it has been served."""

    def __init__(self, batches: Sequence[PackedSample]) -> None:
        self._batches: list[PackedSample | None] = list(batches)

    def __len__(self) -> int:
        """Batches, released ones included."""
        return len(self._batches)

    @property
    def num_bytes(self) -> int:
        """Memory of the batches not yet released."""
        return sum(batch.num_bytes for batch in self._batches if batch is not None)

    def batch(self, number: int) -> PackedSample:
        """Batch `number`, for `sampling.assemble` too; not after it was released."""
        found = self._batches[number]
        assert found is not None, f"batch {number} was released"
        return found

    def nodes(self, number: int) -> NDArray[Any]:
        """Global ids of batch `number` [N], seeds first; uint32 where they fit, else int64. Not a copy."""
        return self.batch(number).nodes

    def sample(self, number: int) -> Sample:
        """The sample of batch `number`, made anew at every call."""
        return self.batch(number).sample()

    def release(self, number: int) -> None:
        """Forget batch `number`; its memory returns to the system."""
        self._batches[number] = None


class SuperbatchSampler:
    """Samples superbatches over a stored topology; one caller at a time.

    Args:
        topology: the relations on disk; stays the caller's to close.
        fanouts: neighbours drawn per relation, from the seeds outward; see `sampling.fanouts`.
        seed: the run's seed.
        num_threads: that compute; reads have threads of their own.
        answer_bytes: memory of the answers of one step: 4 to 12 bytes an edge, 12 a new node. Batches that need more
            together follow each other in groups, each a sweep of its own.

    Memory beside the topology's: `answer_bytes` (more, where one batch alone needs more), 28 bytes a node and edge of
    the largest batch for each thread, and the state of batches in flight (`GrowingBatch`, `PackedSample`; the counter
    `most_state_bytes`).
    """

    def __init__(
        self,
        topology: StoredTopology,
        *,
        fanouts: Sequence[HopFanout],
        seed: int,
        num_threads: int = 1,
        answer_bytes: int = ANSWER_BYTES,
    ) -> None:
        self.topology = topology
        num_nodes = int(topology.type_offsets[-1])
        self._frame = BatchFrame(
            seed=seed,
            fanouts=fanouts_by_relation(fanouts, [relation.relation for relation in topology.relations]),
            type_offsets=topology.type_offsets,
            relations=topology.relations,
            node_dtype=np.dtype(np.uint32 if num_nodes < 2**32 else np.int64),
        )
        self._steps = BatchSteps(self._frame, num_threads=num_threads, answer_bytes=answer_bytes)

    @property
    def counters(self) -> SuperbatchCounters:
        """What was done so far."""
        return self._steps.counters

    @property
    def fanouts(self) -> tuple[tuple[int, ...], ...]:
        """[H][R] neighbours to draw."""
        return self._frame.fanouts

    def close(self) -> None:
        """End the threads."""
        self._steps.close()

    def sample(self, steps: Sequence[AnyStep]) -> SampledSuperbatch:
        """Sample the batches of `steps`, (epoch, step, seeds) each, one sweep of the files a hop.

        Raises BadInput for a seed outside the graph or twice in a step, DamagedStore for a changed page.
        """
        return next(self.stream([steps]))

    def stream(self, superbatches: Iterable[Sequence[AnyStep]]) -> Iterator[SampledSuperbatch]:
        """Sample superbatches one after another, one sweep each; takes as many ahead as there are hops.

        Raises as `sample` does, as soon as the superbatch is taken.
        """
        flying: list[list[GrowingBatch]] = []
        coming = iter(superbatches)
        while True:
            steps = next(coming, None)
            if steps is not None:
                flying.append([GrowingBatch(self._frame, Step(*step)) for step in steps])
            if not flying:
                return
            self._steps.span([batch for batches in flying for batch in batches])
            if all(batch.is_whole for batch in flying[0]):
                yield self._finish(flying)
            self._steps.grow([batch for batches in flying for batch in batches])

    def _finish(self, flying: list[list[GrowingBatch]]) -> SampledSuperbatch:
        """Take the first superbatch out, packed."""
        finished = flying.pop(0)
        others = sum(batch.num_bytes for batches in flying for batch in batches)
        grown = sum(batch.num_bytes for batch in finished)
        packed = SampledSuperbatch(self._steps.pack(finished))
        state_bytes = others + max(grown, packed.num_bytes)
        self.counters.most_state_bytes = max(self.counters.most_state_bytes, state_bytes)
        return packed
