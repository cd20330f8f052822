"""A folder at any fsspec URL; plain paths are local. Files appear whole or not at all.

Locally a file is written under a temporary name, flushed to the disk and renamed, and the folder is flushed
too. On object stores an upload becomes visible when it is complete, which is how they work, and an abandoned
one is aborted. (`memory://` shows files while they are being written; nothing else here does.) Requests to
remote file systems are repeated and their failures explained by `retries`.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.block_cache import BlockCache
from storage.block_files import PARTIAL
from storage.errors import BadInput
from storage.range_reader import open_ranges, read_range
from storage.retries import Retries, open_url, repeat_uploads

T = TypeVar("T")


class Place:
    """A folder; `name` arguments are paths relative to it with forward slashes.

    Args:
        url: `s3://bucket/folder`, `memory://folder`, ... or a local path. It need not exist yet.
        block_cache: what blocks of its stored files are kept in, when it is not on this machine.
        retries: how patient to be with a remote file system.

    Raises BadInput for a URL of an unknown kind.
    """

    def __init__(self, url: str, *, block_cache: BlockCache | None = None, retries: Retries | None = None) -> None:
        self.url = url.rstrip("/") or "/"
        self.block_cache = block_cache
        self.retries = retries or Retries()
        try:
            fs, path = open_url(self.url)
        except (ValueError, ImportError) as error:
            known = ", ".join(sorted(fsspec.available_protocols()))
            raise BadInput(
                url,
                str(error),
                rule=f"a place is a path or a URL of one of: {known}",
                remedy="correct the URL or install the package it needs",
            ) from error
        self._fs: Any = fs
        self._root: str = path.rstrip("/")
        self._is_local = isinstance(fs, LocalFileSystem)

    def __repr__(self) -> str:
        """Show the URL."""
        return f"Place({self.url!r})"

    @property
    def fs(self) -> Any:
        """The fsspec file system."""
        return self._fs

    def path(self, name: str) -> str:
        """`name` as the file system knows it (no protocol)."""
        return f"{self._root}/{name}" if name else self._root or "/"

    def child(self, name: str) -> "Place":
        """The folder `name` inside this one."""
        return Place(self.full(name), block_cache=self.block_cache, retries=self.retries)

    def full(self, name: str) -> str:
        """URL (or path) of `name`, for people."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def local(self, name: str) -> str | None:
        """Path of `name` on this machine; None when the place is elsewhere."""
        return self.path(name) if self._is_local else None

    def _ask(self, request: Callable[..., T], name: str, **kwargs: Any) -> T:
        """A request about `name`; repeated where the place is remote."""
        if self._is_local:
            return request(self.path(name), **kwargs)
        return self.retries.call(self.full(name), request, self.path(name), **kwargs)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder `name`."""
        return bool(self._ask(self._fs.exists, name))

    def size(self, name: str) -> int:
        """Bytes of file `name`; FileNotFoundError when there is none."""
        return int(self._ask(self._fs.size, name))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders in `folder`, sorted; empty when it does not exist."""
        self._fs.invalidate_cache()
        try:
            found = self._ask(self._fs.ls, folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found}
        return sorted(name for name in names if not name.endswith(PARTIAL))

    def files(self, folder: str) -> list[str]:
        """Names of all files in `folder` and below, temporary ones too, sorted; empty when it does not exist."""
        self._fs.invalidate_cache()
        try:
            found = self._ask(self._fs.find, folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        root = self.path("").rstrip("/") + "/"
        return sorted(str(path).removeprefix(root) for path in found)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens when there is none."""
        local = self.local(name)
        if local is None:
            if self.exists(name):
                self._ask(self._fs.rm, name, recursive=True)
        elif os.path.isdir(local) and not os.path.islink(local):
            shutil.rmtree(local)
        elif os.path.lexists(local):
            os.remove(local)

    def read_bytes(self, name: str) -> bytes:
        """The whole file; FileNotFoundError when there is none."""
        return bytes(self._ask(self._fs.cat_file, name))

    def read_range(self, name: str, *, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file; fewer when it ends before; FileNotFoundError when there is none."""
        if self._is_local:
            return bytes(self._fs.cat_file(self.path(name), start=start, end=stop))
        return read_range(self._fs, self.path(name), start, stop, url=self.full(name), retries=self.retries)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write or replace a whole file, atomically."""
        with self.open_write(name) as file:
            file.write(data)

    def open_read(self, name: str) -> BinaryIO:
        """Open for reading, seekable; FileNotFoundError when there is none."""
        if self._is_local:
            return cast(BinaryIO, self._fs.open(self.path(name), "rb"))
        return open_ranges(self._fs, self.path(name), url=self.full(name), retries=self.retries)

    @contextmanager
    def open_write(self, name: str) -> Iterator[BinaryIO]:
        """Write a file that appears (or replaces the old one) when the block ends without an exception.

        Raises BadInput when another writer holds the same local file.
        """
        local = self.local(name)
        with self._write_remote(name) if local is None else _write_local(local) as file:
            yield file

    @contextmanager
    def _write_remote(self, name: str) -> Iterator[BinaryIO]:
        path = self.path(name)
        file = self._ask(self._fs.open, name, mode="wb", autocommit=False)
        repeat_uploads(file, url=self.full(name), retries=self.retries)
        # fsspec also enters the file in its transaction, which would keep it, and its buffer, for ever
        self._fs.transaction.files.remove(file)
        try:
            yield cast(BinaryIO, file)
            file.close()
        except BaseException:
            file.discard()
            if isinstance(self._fs, fsspec.get_filesystem_class("memory")):
                self._fs.rm(path)
            raise
        file.commit()
        self._fs.invalidate_cache(path)


def nearest_folder(path: str) -> str:
    """The folder at a local path, or where there is none yet the nearest one above it."""
    known = os.path.abspath(path)
    while not os.path.isdir(known):
        known = os.path.dirname(known)
    return known


@contextmanager
def _write_local(path: str) -> Iterator[BinaryIO]:
    """The temporary name is always the same, so a killed run's leftovers are overwritten by the next run."""
    folder = os.path.dirname(path)
    _make_folder(folder)
    partial = path + PARTIAL
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT, 0o666)
    with open(descriptor, "wb") as file:
        if not _lock(descriptor, partial):
            raise BadInput(
                path,
                "another process is writing it",
                rule="a file has one writer at a time",
                remedy="wait for the other run or choose another place",
            )
        try:
            os.ftruncate(descriptor, 0)
            yield file
            file.flush()
            os.fsync(descriptor)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        _sync_folder(folder)


def _lock(descriptor: int, path: str) -> bool:
    """Take the file for this writer; False when another has it or has just renamed it into place."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == os.stat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _make_folder(folder: str) -> None:
    """Like os.makedirs, but each new folder's entry is on the disk before anything is put inside."""
    if folder and not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        _make_folder(parent)
        os.makedirs(folder, exist_ok=True)
        _sync_folder(parent)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
