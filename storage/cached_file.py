"""A file that is slow to read, as a block cache sees it: what identifies it, how long it is, how to read it."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray


@dataclass(frozen=True)
class CachedFile:
    """A file whose blocks are worth keeping.

    Attributes:
        key: `identity(...)` of its content; another content has another key.
        num_bytes: its size.
        read: (start, stop) -> the bytes between, in order, in pieces of any size.
        whole: it costs the same to read all of it as to read a block: it is only ever read from its start to its
            end, and all its blocks are made at once.
    """

    key: str
    num_bytes: int
    read: Callable[[int, int], Iterator[Any]]
    whole: bool = False

    def size(self, number: int, *, block_bytes: int) -> int:
        """Bytes of block `number`; the last one may be short."""
        return min(block_bytes, self.num_bytes - number * block_bytes)

    def blocks(self, first: int, last: int, *, block_bytes: int) -> Generator[NDArray[np.uint8], None, None]:
        """Blocks [first, last] from one read; each is good until the next is asked for."""
        stop = min((last + 1) * block_bytes, self.num_bytes)
        buffer = np.empty(min(block_bytes, self.num_bytes), dtype=np.uint8)
        filled, number = 0, first
        for piece in self.read(first * block_bytes, stop):
            raw = np.frombuffer(piece, dtype=np.uint8)
            while raw.shape[0]:
                size = self.size(number, block_bytes=block_bytes)
                part = raw[: size - filled]
                buffer[filled : filled + part.shape[0]] = part
                filled, raw = filled + part.shape[0], raw[part.shape[0] :]
                if filled == size:
                    yield buffer[:filled]
                    filled, number = 0, number + 1
        assert number == last + 1, f"{number - first} blocks read of {last + 1 - first}"


def identity(*parts: str | int) -> str:
    """A name, 32 hex digits, for content that these values tell from any other."""
    return str(xxhash.xxh3_128_hexdigest("\n".join(map(str, parts)).encode()))
