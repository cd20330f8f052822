"""The user's Parquet files: opening one, what changes when it does, and what a store records of those that features
stay in.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from fsspec.implementations.local import LocalFileSystem

from storage.errors import DamagedStore
from storage.range_reader import open_ranges, read_range
from storage.retries import Retries, first_line, open_url
from storage.schema import SourceFile

BUFFER_BYTES = 1 << 20
"""read ahead in each column of a local file"""
REMOTE_READ_BYTES = 8 << 20
"""one request to a remote file system"""
_TAIL_BYTES = 8
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "timeModified", "created")


@contextmanager
def open_parquet(fs: Any, path: str, *, url: str) -> Iterator[pq.ParquetFile]:
    """Open a file for reading; buffered, so pages come one after another instead of a whole column of a row group."""
    if isinstance(fs, LocalFileSystem):
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as parquet:  # Arrow's own file reads without the GIL
            yield parquet
        return
    with open_ranges(fs, path, url=url) as file, pq.ParquetFile(file, buffer_size=REMOTE_READ_BYTES) as parquet:
        yield parquet


def file_state(fs: Any, path: str, *, url: str, restorable: bool = True) -> tuple[int, str]:
    """Size of a file, and a value that a change of its content changes, as its file system gives it now.

    Args:
        restorable: a copy with the same time of change is the same file; else it is another one.
    """
    if isinstance(fs, LocalFileSystem):
        status = os.stat(path)
        mark = f"mtime_ns {status.st_mtime_ns}"
        return status.st_size, mark if restorable else f"{mark}, ctime_ns {status.st_ctime_ns}, inode {status.st_ino}"
    fs.invalidate_cache()
    info = Retries().call(url, fs.info, path)
    tag = info.get("ETag") or info.get("etag")
    if tag is not None:
        return int(info["size"]), f"etag {str(tag).strip(chr(34))}"
    times = [f"{name} {info[name]}" for name in _TIMES if info.get(name) is not None]
    return int(info["size"]), (times or ["no time"])[0]


def describe_file(url: str, *, group_rows: tuple[int, ...]) -> SourceFile:
    """What a generation records of the file at `url` (absolute) whose row groups have these rows."""
    fs, path = open_url(url)
    num_bytes, fingerprint = file_state(fs, path, url=url)
    return SourceFile(
        url=url,
        num_bytes=num_bytes,
        group_rows=group_rows,
        fingerprint=fingerprint,
        footer_xxh64=_footer_xxh64(fs, path, url=url, num_bytes=num_bytes),
    )


def refuse_changed(source: SourceFile) -> None:
    """Check size and fingerprint without reading.

    Raises:
        DamagedStore: the file is gone, or not the one that was ingested.
    """
    fs, path = open_url(source.url)
    try:
        num_bytes, fingerprint = file_state(fs, path, url=source.url)
    except FileNotFoundError:
        raise changed(source, "missing file") from None
    if num_bytes != source.num_bytes:
        raise changed(source, f"{num_bytes} bytes where {source.num_bytes} were ingested")
    if fingerprint != source.fingerprint:
        raise changed(source, f"{fingerprint} where it was {source.fingerprint}")


def refuse_other_footer(source: SourceFile) -> None:
    """Check the bytes of the footer too; raises as `refuse_changed`, which comes first."""
    fs, path = open_url(source.url)
    if _footer_xxh64(fs, path, url=source.url, num_bytes=source.num_bytes) != source.footer_xxh64:
        raise changed(source, "another Parquet footer than was ingested")


@contextmanager
def open_source(source: SourceFile) -> Iterator[pq.ParquetFile]:
    """Open the file for reading; what Arrow finds wrong in it is a change, what the system refuses is not."""
    fs, path = open_url(source.url)
    try:
        with open_parquet(fs, path, url=source.url) as parquet:
            yield parquet
    except FileNotFoundError:
        raise changed(source, "missing file") from None
    except (pa.ArrowException, OSError) as error:
        # of bytes that make no sense Arrow says OSError too, which then has no number
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise changed(source, f"{type(error).__name__}: {first_line(error)}") from error


def changed(source: SourceFile, found: str) -> DamagedStore:
    """The error for a source file in which `found` was found."""
    return DamagedStore(
        source.url,
        found,
        rule="files whose features stay in place keep the bytes that were ingested",
        remedy="restore the file with its time of change, or ingest again",
    )


def _footer_xxh64(fs: Any, path: str, *, url: str, num_bytes: int) -> str:
    def read(start: int, stop: int) -> bytes:
        if isinstance(fs, LocalFileSystem):
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(stop - start)
        return read_range(fs, path, start, stop, url=url, retries=Retries())

    tail = read(max(0, num_bytes - _TAIL_BYTES), num_bytes)
    footer_bytes = int.from_bytes(tail[:4], "little")
    return xxhash.xxh64_hexdigest(read(max(0, num_bytes - _TAIL_BYTES - footer_bytes), num_bytes))
