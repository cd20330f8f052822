"""A sampled batch on its way to being served, whoever sampled it: kept in few bytes, taken once."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sampling.assemble import Surroundings
from sampling.kept import Shelf
from sampling.neighbors import Sample, SampledHop
from sampling.packed_sample import PackedSample

UINT32_END = 2**32
NOTHING = np.empty(0, dtype=np.uint8)


class KeptBatch(Protocol):
    """A batch that waits in memory or on disk."""

    def take(self) -> tuple[Sample, Surroundings]:
        """The sample, and what tells its degrees and weights; the space is free afterwards."""


class Drawn(Protocol):
    """A batch that was just sampled."""

    @property
    def nodes(self) -> NDArray[Any]:
        """[N] global ids, seeds first."""

    @property
    def num_edges(self) -> int:
        """Over all hops."""

    def keep(self, shelf: Shelf) -> KeptBatch:
        """Put it where it waits."""


class DrawnInMemory:
    """Sampled from a topology in memory, which `around` reads."""

    def __init__(self, sample: Sample, around: Surroundings) -> None:
        self.sample = sample
        self.around = around

    @property
    def nodes(self) -> NDArray[np.int64]:
        """See `Drawn`."""
        return self.sample.nodes

    @property
    def num_edges(self) -> int:
        """See `Drawn`."""
        return sum(hop.source.shape[0] for hop in self.sample.hops)

    def keep(self, shelf: Shelf) -> KeptBatch:
        """See `Drawn`."""
        return _KeptSample(self, shelf)


class _KeptSample:
    def __init__(self, drawn: DrawnInMemory, shelf: Shelf) -> None:
        hops = drawn.sample.hops
        arrays = [_narrow(drawn.sample.nodes)]
        for hop in hops:
            arrays += [hop.indptr, hop.source, _narrow(hop.position)]
        self._num_targets = [hop.num_targets for hop in hops]
        self._num_sources = [hop.num_sources for hop in hops]
        self._around = drawn.around
        if drawn.sample.times is not None:
            arrays.append(drawn.sample.times)
        self._kept = shelf.keep(arrays)

    def take(self) -> tuple[Sample, Surroundings]:
        nodes, *arrays = self._kept.take()
        hops = []
        for number, (num_targets, num_sources) in enumerate(zip(self._num_targets, self._num_sources, strict=True)):
            indptr, source, position = arrays[3 * number : 3 * number + 3]
            hops.append(SampledHop(num_targets, num_sources, indptr, source, position.astype(np.int64, copy=False)))
        times = arrays[3 * len(hops)] if len(arrays) > 3 * len(hops) else None
        return Sample(nodes=nodes.astype(np.int64, copy=False), hops=tuple(hops), times=times), self._around


class DrawnOnDisk:
    """Sampled from a stored topology, with what it read of degrees and weights."""

    def __init__(self, packed: PackedSample) -> None:
        self._packed = packed

    @property
    def nodes(self) -> NDArray[Any]:
        """See `Drawn`."""
        return self._packed.nodes

    @property
    def num_edges(self) -> int:
        """See `Drawn`."""
        return self._packed.num_edges

    def keep(self, shelf: Shelf) -> KeptBatch:
        """See `Drawn`."""
        return _KeptPacked(self._packed, shelf)


class _KeptPacked:
    def __init__(self, packed: PackedSample, shelf: Shelf) -> None:
        self._packed = packed
        self._kept = shelf.keep(list(packed.arrays))
        packed.arrays = packed.arrays.mapped(lambda array: NOTHING.view(array.dtype))

    def take(self) -> tuple[Sample, Surroundings]:
        arrays = iter(self._kept.take())
        self._packed.arrays = self._packed.arrays.mapped(lambda _: next(arrays))
        return self._packed.sample(), self._packed


def _narrow(array: NDArray[np.int64]) -> NDArray[Any]:
    """As uint32 where every value fits."""
    return array.astype(np.uint32) if array.size == 0 or array.max() < UINT32_END else array
