"""What is known of batches before they are served: kept on shelves, one for each kind of arrays, and taken once.

A shelf gathers small arrays into bundles. A bundle stays in memory where the space has room, and goes to the disk in
one write where it has not; the first of its arrays that is taken brings all of them back in one read.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.sample_space import Extent, SampleSpace
from storage.pages import PAGE_BYTES
from storage.scratch_file import new_staging

Arrays = list[NDArray[Any]]
Shapes = list[tuple[tuple[int, ...], np.dtype[Any]]]


class Shelf:
    """Arrays of one kind, best taken in the order in which they were kept; one thread keeps, another may take."""

    def __init__(self, space: SampleSpace) -> None:
        self._space = space
        self._open = _Bundle(space)

    def keep(self, arrays: Arrays) -> "KeptArrays":
        """Keep a few arrays, which nobody may write to any more; raises ScratchFull when no disk has room."""
        bundle = self._open
        kept = KeptArrays(bundle, bundle.add(arrays))
        if bundle.num_bytes >= self._space.bundle_bytes:
            self._open = _Bundle(self._space)
            bundle.seal()
        return kept


@dataclass(frozen=True)
class KeptArrays:
    """Some arrays on a shelf."""

    bundle: "_Bundle"
    number: int

    def take(self) -> Arrays:
        """The arrays as they were; only once."""
        return self.bundle.take(self.number)


class _Bundle:
    """Arrays that go to the disk and come back together."""

    def __init__(self, space: SampleSpace) -> None:
        self.num_bytes = 0
        self._num_added = 0
        self._space = space
        self._lock = Lock()
        self._in_memory: dict[int, Arrays] = {}
        self._on_disk: dict[int, Shapes] = {}
        self._extent: Extent | None = None
        self._is_charged = False

    def add(self, arrays: Arrays) -> int:
        """The number that they are taken by."""
        with self._lock:
            self._num_added += 1
            self._in_memory[self._num_added] = arrays
            self.num_bytes += _size(arrays)
            return self._num_added

    def seal(self) -> None:
        """Nothing more will be added: find a place for what has not been taken."""
        with self._lock:
            num_bytes = sum(_size(arrays) for arrays in self._in_memory.values())
            self._is_charged = self._space.take(num_bytes)
            if not self._is_charged:
                self._extent = self._space.spill(_packed(self._in_memory, num_bytes))
                self._on_disk = {n: [(a.shape, a.dtype) for a in arrays] for n, arrays in self._in_memory.items()}
                self._in_memory = {}

    def take(self, number: int) -> Arrays:
        """See `KeptArrays`."""
        with self._lock:
            if self._extent is not None:
                self._in_memory = _unpacked(self._extent.read(), self._on_disk)
                self._extent = None
            arrays = self._in_memory.pop(number)
            if self._is_charged:
                self._space.give_back(_size(arrays))
            return arrays


def _size(arrays: Arrays) -> int:
    return sum(_aligned(array.nbytes) for array in arrays)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // 8) * 8


def _packed(kept: dict[int, Arrays], num_bytes: int) -> NDArray[np.uint8]:
    data = new_staging(-(-num_bytes // PAGE_BYTES)).data
    at = 0
    for arrays in kept.values():
        for array in arrays:
            data[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            at += _aligned(array.nbytes)
    return data


def _unpacked(data: NDArray[np.uint8], shapes: dict[int, Shapes]) -> dict[int, Arrays]:
    found: dict[int, Arrays] = {}
    at = 0
    for number, expected in shapes.items():
        found[number] = []
        for shape, dtype in expected:
            num_bytes = int(np.prod(shape)) * dtype.itemsize
            found[number].append(data[at : at + num_bytes].view(dtype).reshape(shape))
            at += _aligned(num_bytes)
    return found
