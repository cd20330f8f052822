"""A remote file as a seekable stream: ranged reads of 8 to 16 MiB, each repeated when it fails for a while."""

import io
from typing import Any, BinaryIO, cast

from storage.retries import Retries

AHEAD_BYTES = 8 << 20
LONGEST_BYTES = 16 << 20


def read_range(fs: Any, path: str, start: int, stop: int, *, url: str, retries: Retries) -> bytes:
    """Bytes [start, stop) of a file, in requests of at most 16 MiB; fewer when it ends before."""
    parts = []
    while start < stop:
        end = min(start + LONGEST_BYTES, stop)
        parts.append(bytes(retries.call(url, fs.cat_file, path, start=start, end=end)))
        if len(parts[-1]) < end - start:
            break
        start = end
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_ranges(fs: Any, path: str, *, url: str, retries: Retries | None = None) -> BinaryIO:
    """Open a remote file for reading; FileNotFoundError when there is none."""
    return cast(BinaryIO, RangeReader(fs, path, url=url, retries=retries or Retries()))


class RangeReader(io.RawIOBase):
    """Reads what it is asked for and up to 8 MiB with it; not for several threads at once.

    Args:
        fs, path: the file in its fsspec file system.
        url: its name in messages.
        retries: how patient to be.
    """

    def __init__(self, fs: Any, path: str, *, url: str, retries: Retries) -> None:
        super().__init__()
        self._fs = fs
        self._path = path
        self._url = url
        self._retries = retries
        self._num_bytes = int(retries.call(url, fs.size, path))
        self._at = 0
        self._held_from = 0
        self._held = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Current position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, as io.RawIOBase says."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` from the current position; returns the bytes read, fewer only at the end."""
        out = memoryview(cast(bytearray, buffer)).cast("B")
        wanted = max(0, min(out.nbytes, self._num_bytes - self._at))
        if not wanted:
            return 0
        skip = self._at - self._held_from
        if skip < 0 or skip + wanted > len(self._held):
            stop = min(self._at + max(wanted, AHEAD_BYTES), self._num_bytes)
            self._held = read_range(self._fs, self._path, self._at, stop, url=self._url, retries=self._retries)
            self._held_from, skip = self._at, 0
        got = self._held[skip : skip + wanted]
        out[: len(got)] = got
        self._at += len(got)
        return len(got)
