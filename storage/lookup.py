"""From a user's ids to dense rows: 64-bit hashes of all ids of a segment, sorted, beside their rows.

Hashes only narrow the search: the caller compares ids, so two ids with one hash are still told apart. The
hash of an int64 id is splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014, section 3), that of a
string XXH64 of its UTF-8 bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from storage.jit import kernel
from storage.pages import xxh64

LOOKUP_DTYPE = np.dtype([("hash", "<u8"), ("row", "<i8")])


@dataclass(frozen=True)
class Candidates:
    """Rows that may hold a wanted id: pair p says that id number `wanted[p]` may be in `row[p]`."""

    wanted: NDArray[np.int64]
    row: NDArray[np.int64]


@kernel
def _hash_integers(ids: NDArray[np.int64], hashes: NDArray[np.uint64]) -> None:
    for index in range(ids.shape[0]):
        word = np.uint64(ids[index])
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes[index] = word ^ (word >> np.uint64(31))


@kernel
def _hash_strings(offsets: NDArray[np.int64], data: NDArray[np.uint8], hashes: NDArray[np.uint64]) -> None:
    for index in range(hashes.shape[0]):
        hashes[index] = xxh64(data, offsets[index], offsets[index + 1])


@kernel
def _check_strings(offsets: NDArray[np.int64], data: NDArray[np.uint8], checks: NDArray[np.uint32]) -> None:
    for index in range(checks.shape[0]):
        word = np.uint64(0xCBF29CE484222325)
        for at in range(offsets[index], offsets[index + 1]):
            word = (word ^ np.uint64(data[at])) * np.uint64(0x100000001B3)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        checks[index] = np.uint32((word ^ (word >> np.uint64(31))) >> np.uint64(32))


@kernel
def _ranges(
    hashes: NDArray[np.uint64], wanted: NDArray[np.uint64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> int:
    """Fill the range of `hashes` (sorted) that equals each wanted hash; returns the number of pairs."""
    total = 0
    for index in range(wanted.shape[0]):
        low = 0
        high = hashes.shape[0]
        while low < high:
            middle = (low + high) // 2
            if hashes[middle] < wanted[index]:
                low = middle + 1
            else:
                high = middle
        begin[index] = low
        while high < hashes.shape[0] and hashes[high] == wanted[index]:
            high += 1
        end[index] = high
        total += high - low
    return total


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """Hashes, uint64 [n], of n ids: an int64, string or large_string array without nulls."""
    hashes = np.empty(len(ids), dtype=np.uint64)
    if pa.types.is_int64(ids.type):
        _hash_integers(np.array(ids), hashes)
        return hashes
    if len(ids):
        _hash_strings(*_text(ids), hashes)
    return hashes


def check_strings(ids: pa.Array) -> NDArray[np.uint32]:
    """A second hash, uint32 [n], of strings: FNV-1a (Fowler, Noll and Vo) of the bytes, mixed as `hash_ids` mixes."""
    checks = np.empty(len(ids), dtype=np.uint32)
    if len(ids):
        _check_strings(*_text(ids), checks)
    return checks


def _text(ids: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets [n + 1] and bytes of a string array."""
    ids = ids.cast(pa.large_string())
    _, offsets_buffer, data_buffer = ids.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[ids.offset : ids.offset + len(ids) + 1]
    # an array of empty strings may have no data buffer; numba wants one type whether or not it may write
    data = np.frombuffer(data_buffer or b"", dtype=np.uint8)
    return _frozen(offsets), _frozen(data)


def lookup_entries(hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Entries (hash, row) [n] of a lookup, sorted by both; `hashes` are sorted already."""
    lookup = np.empty(hashes.shape[0], dtype=LOOKUP_DTYPE)
    lookup["hash"] = hashes
    lookup["row"] = rows
    if (hashes[1:] == hashes[:-1]).any():
        lookup = lookup[np.lexsort((rows, hashes))]
    return lookup


def find_candidates(lookup: NDArray[Any], ids: pa.Array) -> Candidates:
    """Every (wanted id, row) pair whose hashes are equal, ordered by row."""
    wanted = hash_ids(ids)
    begin = np.empty(len(ids), dtype=np.int64)
    end = np.empty(len(ids), dtype=np.int64)
    total = _ranges(_frozen(lookup["hash"]), wanted, begin, end)
    count = end - begin
    number = np.repeat(np.arange(len(ids), dtype=np.int64), count)
    place = np.arange(total, dtype=np.int64) - np.repeat(np.cumsum(count) - count, count) + begin[number]
    rows = lookup["row"][place]
    order = np.argsort(rows, kind="stable")
    return Candidates(wanted=number[order], row=rows[order])


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
