"""XXH64 over 4 KiB pages: the sum every page carries, and the check every read makes, both without the GIL.

A page's sum is the first 32 bits of its XXH64 (seed 0) in canonical form, that is the upper half. Pages are
cut from the start of the file, header included; the last one is hashed as long as it is.

Source: the XXH64 specification (Collet, "xxHash fast digest algorithm", section "XXH64"). Own kernels because
the checks run inside compiled readers; a test holds them equal to the xxhash package.
"""

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel

PAGE_BYTES = 4096
PAGE_WORDS = PAGE_BYTES // 8

P1 = np.uint64(0x9E3779B185EBCA87)
P2 = np.uint64(0xC2B2AE3D27D4EB4F)
P3 = np.uint64(0x165667B19E3779F9)
P4 = np.uint64(0x85EBCA77C2B2AE63)
P5 = np.uint64(0x27D4EB2F165667C5)


@kernel
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    return np.uint64((word << np.uint64(bits)) | (word >> np.uint64(64 - bits)))


@kernel
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotate(lane + word * P2, 31) * P1)


@kernel
def _merge(a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64) -> np.uint64:
    zero = np.uint64(0)
    word = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
    word = (word ^ _round(zero, a)) * P1 + P4
    word = (word ^ _round(zero, b)) * P1 + P4
    word = (word ^ _round(zero, c)) * P1 + P4
    return np.uint64((word ^ _round(zero, d)) * P1 + P4)


@kernel
def _avalanche(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> np.uint64(33))) * P2
    word = (word ^ (word >> np.uint64(29))) * P3
    return np.uint64(word ^ (word >> np.uint64(32)))


@kernel
def _load(data: NDArray[np.uint8], at: int, num_bytes: int) -> np.uint64:
    """`num_bytes` bytes from `at` as a little-endian number, whatever their alignment."""
    word = np.uint64(0)
    for number in range(num_bytes):
        word |= np.uint64(data[at + number]) << np.uint64(8 * number)
    return word


@kernel
def xxh64(data: NDArray[np.uint8], start: int, stop: int) -> np.uint64:
    """XXH64 of `data[start:stop]`, any length and alignment."""
    at = start
    if stop - start >= 32:
        a = P1 + P2
        b = P2
        c = np.uint64(0)
        d = np.uint64(0) - P1
        while at + 32 <= stop:
            a = _round(a, _load(data, at, 8))
            b = _round(b, _load(data, at + 8, 8))
            c = _round(c, _load(data, at + 16, 8))
            d = _round(d, _load(data, at + 24, 8))
            at += 32
        word = _merge(a, b, c, d)
    else:
        word = P5
    word += np.uint64(stop - start)
    while at + 8 <= stop:
        word = _rotate(word ^ _round(np.uint64(0), _load(data, at, 8)), 27) * P1 + P4
        at += 8
    if at + 4 <= stop:
        word = _rotate(word ^ (_load(data, at, 4) * P1), 23) * P2 + P3
        at += 4
    while at < stop:
        word = _rotate(word ^ (np.uint64(data[at]) * P5), 11) * P1
        at += 1
    return _avalanche(np.uint64(word))


@kernel
def _page_xxh64(words: NDArray[np.uint64]) -> np.uint64:
    """XXH64 of one whole page, uint64 [512]; four lanes that the processor runs side by side."""
    a = P1 + P2
    b = P2
    c = np.uint64(0)
    d = np.uint64(0) - P1
    for number in range(0, PAGE_WORDS, 4):
        a = _round(a, words[number])
        b = _round(b, words[number + 1])
        c = _round(c, words[number + 2])
        d = _round(d, words[number + 3])
    return _avalanche(np.uint64(_merge(a, b, c, d) + np.uint64(PAGE_BYTES)))


@kernel
def page_sum(words: NDArray[np.uint64], data: NDArray[np.uint8], num_bytes: int, page: int) -> np.uint32:
    """Sum of page `page` of the first `num_bytes` bytes of `data`; `words` is `data` seen as uint64."""
    if (page + 1) * PAGE_BYTES <= num_bytes:
        whole = _page_xxh64(words[page * PAGE_WORDS : (page + 1) * PAGE_WORDS])
    else:
        whole = xxh64(data, page * PAGE_BYTES, num_bytes)
    return np.uint32(whole >> np.uint64(32))


@kernel
def check_pages(
    words: NDArray[np.uint64], data: NDArray[np.uint8], num_bytes: int, sums: NDArray[np.uint32], first: int
) -> int:
    """First page p of `data[:num_bytes]` whose sum is not `sums[first + p]`; -1 when there is none."""
    for page in range(-(-num_bytes // PAGE_BYTES)):
        if page_sum(words, data, num_bytes, page) != sums[first + page]:
            return page
    return -1


@kernel
def _fill_sums(words: NDArray[np.uint64], data: NDArray[np.uint8], sums: NDArray[np.uint32]) -> None:
    for page in range(sums.shape[0]):
        sums[page] = page_sum(words, data, data.shape[0], page)


def as_words(data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The whole 8-byte words of `data` (uint8 [n]) as uint64 [n // 8]; copied only where not aligned."""
    whole = data[: data.shape[0] // 8 * 8]
    if whole.ctypes.data % 8:
        whole = whole.copy()
    return whole.view(np.uint64)


def page_sums(buffer: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Sums, uint32 [ceil(n / 4096)], of the pages of `buffer` (uint8 [n], contiguous)."""
    sums = np.empty(-(-buffer.shape[0] // PAGE_BYTES), dtype=np.uint32)
    _fill_sums(as_words(buffer), buffer, sums)
    return sums


def first_bad_page(buffer: NDArray[np.uint8], sums: NDArray[np.uint32]) -> int:
    """First page of `buffer` (uint8 [n]) that differs from `sums` (uint32 [ceil(n / 4096)]); -1 when none."""
    return check_pages(as_words(buffer), buffer, buffer.shape[0], sums, 0)
