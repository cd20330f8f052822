"""An ingest's hold on the place it writes: one at a time, and nothing half-written is taken for a store.

A local place holds `ingest.unfinished/` while an ingest is under way: locked by the process that works there, and the
folder of temporary files where no other was named. The lock goes with the process, so what is found unlocked is what
a killed ingest left, and the same command goes on from there. Elsewhere `ingest.unfinished` is a small file that names
the writer; it is renewed while the ingest runs and counts as abandoned when it has not been for a while.

Whoever changes a store holds its place in the same way: one writer, of whatever kind, at a time.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import xxhash

from storage.errors import BadInput
from storage.place import Place
from storage.schema import MANIFEST_NAME
from storage.stages.work import Work

UNFINISHED = "ingest.unfinished"
STAGES = "stages"
LOCK = "lock"
WRITTEN = ("generations", "edges", "nodes")
EMPTY_RULE = "a new store is written to an empty or new place"
ABANDONED_SECONDS = 900.0
"""a remote mark that was not renewed for so long belongs to nobody"""
_RENEW_SECONDS = 30.0


def refuse_occupied(place: Place, *, is_own: Callable[[], bool] = lambda: True) -> None:
    """Check that a new store may be written to `place`.

    Args:
        place: where.
        is_own: whether a store there that has temporary files is this ingest's own, complete but for their removal.

    Raises:
        BadInput: it holds a store, or something that no ingest left there.
    """
    names = place.names()
    if MANIFEST_NAME in names and not (UNFINISHED in names and is_own()):
        raise BadInput(
            place.url,
            "it already holds a store",
            rule=EMPTY_RULE,
            remedy="choose another place or delete it, or add to it with --append",
        )
    if names and UNFINISHED not in names:
        raise BadInput(
            place.url,
            f"it already holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}",
            rule=EMPTY_RULE,
            remedy="choose another place or empty it",
        )


class Claim:
    """A place held by this ingest: its temporary files, and the mark that keeps others away."""

    def __init__(self, place: Place, folder: str, *, clear: Callable[[], None]) -> None:
        self.place = place
        self.folder = folder
        self._clear = clear
        self._token = ""
        self._renewed = 0.0

    def work(self, fingerprint: str) -> Work:
        """The stages done so far for these inputs; what others left half-written is removed."""
        work = Work(os.path.join(self.folder, STAGES), fingerprint=fingerprint)
        if not work.resumed:
            self._clear()
        return work

    def renew(self) -> None:
        """Show that the ingest is alive; BadInput when another has taken the place meanwhile."""
        if self.place.local("") is not None or time.monotonic() - self._renewed < _RENEW_SECONDS:
            return
        mark = _read_mark(self.place)
        if self._token and (mark is None or mark["token"] != self._token):
            raise _taken(self.place, mark)
        self._write_mark()

    def _write_mark(self) -> None:
        mark = {"token": self._token, "host": socket.gethostname(), "time": time.time()}
        self.place.write_bytes(UNFINISHED, json.dumps(mark).encode())
        self._renewed = time.monotonic()

    def take_remote(self) -> None:
        """Mark a place that is not on this machine as ours."""
        path = os.path.join(self.folder, "token")
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii") as file:
            self._token = file.read()
        mark = _read_mark(self.place)
        if mark is not None and mark["token"] != self._token and time.time() - mark["time"] < ABANDONED_SECONDS:
            raise _taken(self.place, mark)
        if not self._token:
            self._token = uuid.uuid4().hex
            with open(path, "w", encoding="ascii") as file:
                file.write(self._token)
        self._write_mark()
        mark = _read_mark(self.place)
        if mark is None or mark["token"] != self._token:
            raise _taken(self.place, mark)


def clear_new(place: Place) -> None:
    """Remove what an unfinished ingest wrote; a store that is there is left alone."""
    if not place.exists(MANIFEST_NAME):
        for name in WRITTEN:
            place.remove(name)


@contextlib.contextmanager
def claimed(
    place: Place,
    *,
    work_folder: str | None,
    check: Callable[[], None],
    clear: Callable[[Place], None] = clear_new,
) -> Iterator[Claim]:
    """Hold `place` inside the block.

    After the block, and after a BadInput, nothing but the store is left. After any other exception (a full disk,
    Ctrl-C) the temporary files stay, and the same ingest goes on from them.

    Args:
        place: where a store is written.
        work_folder: for temporary files; None for the usual one.
        check: raises BadInput when the place may not be written; called before and after it is held.
        clear: removes what an unfinished writer left beside the store.

    Raises:
        BadInput: as `check`; another ingest holds the place; it cannot be written.
    """
    check()
    made = _missing_folders(place)
    folder = _folder(place, work_folder)
    try:
        os.makedirs(folder, exist_ok=True)
        held = place.local(UNFINISHED) or folder
        lock = lock_folder(held, place)
    except OSError as error:
        raise BadInput(
            place.url,
            f"{type(error).__name__}: {error.strerror or error}",
            rule="the store's place and the folder of temporary files must be writable",
            remedy="choose another place or mend its permissions",
        ) from error
    claim = Claim(place, folder, clear=partial(clear, place))
    try:
        check()
        if place.local("") is None:
            claim.take_remote()
        try:
            yield claim
        except BadInput:
            clear(place)
            _release(place, folder)
            for path in made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            raise
        _release(place, folder)
    finally:
        os.close(lock)


def left_by(place: Place, *, work_folder: str | None) -> str | None:
    """The fingerprint of the ingest whose temporary files are there for `place`; None when nothing tells."""
    return Work.left_by(os.path.join(_folder(place, work_folder), STAGES))


def _release(place: Place, folder: str) -> None:
    Work.discard(os.path.join(folder, STAGES))
    shutil.rmtree(folder)
    place.remove(UNFINISHED)


def _folder(place: Place, work_folder: str | None) -> str:
    local = place.local(UNFINISHED)
    if work_folder is None and local is not None:
        return local
    path = place.local("")
    told = place.url if path is None else os.path.realpath(path)  # one place, however it is spelled
    name = f"hopstream-ingest-{xxhash.xxh64_hexdigest(told.encode())}"
    return os.path.join(work_folder or tempfile.gettempdir(), name)


def _missing_folders(place: Place) -> list[str]:
    """Folders above and including a local place that do not exist yet, deepest first."""
    path = place.local("")
    missing = list[str]()
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def lock_folder(folder: str, place: Place) -> int:
    """Make a folder of temporary files for what is written to `place` and hold its lock, which goes with the process.

    Returns the open lock. Raises BadInput when another process holds it.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, LOCK)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the process that has finished took the folder away meanwhile
        raise _taken(place, None) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.fstat(descriptor).st_ino == os.stat(path).st_ino
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:  # held, or just removed by the ingest that has finished
        os.close(descriptor)
        raise _taken(place, None)
    return descriptor


def _read_mark(place: Place) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(place.read_bytes(UNFINISHED))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return found


def _taken(place: Place, mark: dict[str, Any] | None) -> BadInput:
    where = "" if mark is None else f" on host {mark['host']}"
    return BadInput(
        place.url,
        f"another ingest is writing there{where}",
        rule="a place has one writer at a time",
        remedy="wait for it, or choose another place",
    )
