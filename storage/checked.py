"""Byte streams over stored files: page sums are made while writing and checked while reading.

Arrays and Parquet files are written through `CheckedWriter`; Parquet files are read through `CheckedReader`,
so that pyarrow never parses a byte that was not checked.
"""

import io
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from storage.block_reads import STAGING_BYTES, PageFile, Staging
from storage.npy import write_sums
from storage.pages import PAGE_BYTES, page_sums
from storage.place import Place
from storage.schema import FileInfo


class CheckedWriter(io.RawIOBase):
    """Writes file `name` and its page sums; both appear when the block ends without an exception.

    Use as a context manager; `info` is there afterwards. Memory: 1 MiB and 4 bytes a page.
    """

    def __init__(self, place: Place, name: str) -> None:
        super().__init__()
        self.place = place
        self.name = name
        self.info: FileInfo | None = None
        self._num_bytes = 0
        self._filled = 0
        self._buffer = np.empty(STAGING_BYTES, dtype=np.uint8)
        self._sums: list[NDArray[np.uint32]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Open the file under a temporary name."""
        self._file = self._stack.enter_context(self.place.open_write(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit the file, then its sums; after an exception neither."""
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._drain()
        sums = np.concatenate([np.empty(0, dtype=np.uint32), *self._sums])
        self.info = write_sums(self.place, self.name, num_bytes=self._num_bytes, sums=sums)

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._num_bytes

    def close(self) -> None:
        """Nothing: pyarrow closes what it writes to, but only the end of the block commits."""

    def write(self, data: object) -> int:
        """Append bytes (any contiguous buffer); returns their number."""
        raw = np.frombuffer(data, dtype=np.uint8)  # type: ignore[call-overload]  # any buffer, as RawIOBase says
        taken = 0
        while taken < raw.shape[0]:
            part = raw[taken : taken + STAGING_BYTES - self._filled]
            self._buffer[self._filled : self._filled + part.shape[0]] = part
            self._filled += part.shape[0]
            taken += part.shape[0]
            if self._filled == STAGING_BYTES:
                self._drain()
        self._num_bytes += taken
        return taken

    def _drain(self) -> None:
        whole = self._buffer[: self._filled]
        self._sums.append(page_sums(whole))
        self._file.write(whole.data)
        self._filled = 0


class CheckedReader(io.RawIOBase):
    """A stored file as a seekable stream of checked bytes; not for several threads at once.

    Every read raises DamagedStore when a page that it touches has changed.
    """

    def __init__(self, place: Place, info: FileInfo) -> None:
        super().__init__()
        self._file = PageFile(place, info)
        self._staging = Staging(STAGING_BYTES)
        self._at = 0

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
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.info.num_bytes}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` from the current position; returns the bytes read, fewer only at the end."""
        out = np.frombuffer(buffer, dtype=np.uint8)  # type: ignore[call-overload]  # any writable buffer
        wanted = max(0, min(out.shape[0], self._file.info.num_bytes - self._at))
        done = 0
        while done < wanted:
            page, skip = divmod(self._at, PAGE_BYTES)
            num_pages = min(-(-(skip + wanted - done) // PAGE_BYTES), STAGING_BYTES // PAGE_BYTES)
            got = self._file.read(self._staging.data, self._staging.words, first_page=page, num_pages=num_pages)
            part = min(got - skip, wanted - done)
            out[done : done + part] = self._staging.data[skip : skip + part]
            done += part
            self._at += part
        return done

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()
