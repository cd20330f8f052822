"""A lease in the run's storage: one process group at a time works on a run.

The lease names host, process and an expiry, and is renewed while the run lives. A lease whose process is gone
from this host, or whose expiry has passed, is taken over; so the same command works at once after a kill -9.

On a local disk looking and writing are one act, under a lock on the folder. Elsewhere there are no locks: a lease
is read back after it was written, and the rare two that both saw themselves find out at the first renewal. A
holder that finds another's lease, or cannot renew its own before it expires, stops.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

import psutil

from service.errors import TrainingFailed
from storage.errors import BadInput
from storage.place import Place

LEASE_NAME = "lease.json"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0

Holder = dict[str, str | int | float]


class Lease:
    """Holds `lease.json` of a run's folder for the length of a `with` block.

    Raises BadInput on entry when another living process holds it, and TrainingFailed on leaving when it was lost.
    A long block asks `check` meanwhile, or is told through `on_lost`.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hopstream-lease", daemon=True)
        self._expires = 0.0
        self._lost: str | None = None
        self._told: list[Callable[[str], None]] = []
        self._telling = threading.Lock()

    def __enter__(self) -> "Lease":
        folder = self._place.local("")
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        with self._alone():
            self._refuse_other()
            self._write()
        self._refuse_other()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError), self._alone():  # what cannot be removed expires
            holder = self._read()
            if holder is not None and holder["token"] == self._token:
                self._place.remove(LEASE_NAME)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise TrainingFailed when the lease was lost."""
        if self._lost is not None:
            raise TrainingFailed(self._lost)

    def on_lost(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with the reason when the lease is lost, from another thread; at once if it is already."""
        with self._telling:
            self._told.append(tell)
            if self._lost is not None:
                tell(self._lost)

    def _renew(self) -> None:
        while not self._stop.wait(min(RENEW_SECONDS, max(0.0, self._expires - time.monotonic()))):
            try:
                with self._alone():
                    holder = self._read()
                    if holder is None or holder["token"] != self._token:
                        self._lose("it was removed" if holder is None else f"it is held by {named(holder)}")
                        return
                    self._write()
            except Exception as error:  # remote file systems have errors of their own; every one may pass
                if time.monotonic() >= self._expires:
                    self._lose(f"it could not be renewed ({type(error).__name__}: {error})")
                    return

    def _lose(self, reason: str) -> None:
        with self._telling:
            self._lost = (
                f"{self._place.full(LEASE_NAME)}: the lease on this work was lost: {reason}; this process stops, and "
                "the same command goes on once no other works there"
            )
            for tell in self._told:
                tell(self._lost)

    def _refuse_other(self) -> None:
        holder = self._read()
        if holder is not None and holder["token"] != self._token and alive(holder):
            raise BadInput(
                self._place.full(LEASE_NAME),
                f"held by {named(holder)}",
                rule="one process works on a run at a time",
                remedy="wait for it or stop it; a lost lease expires within a minute",
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process of this machine looks at or writes the lease inside the block, where that can be had."""
        folder = self._place.local("")
        if folder is None or not os.path.isdir(folder):
            yield
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a network disk that does not lock folders: as elsewhere
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self) -> None:
        expires = time.monotonic() + LEASE_SECONDS
        lease = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": process_start(os.getpid()),
            "expires": time.time() + LEASE_SECONDS,
        }
        self._place.write_bytes(LEASE_NAME, json.dumps(lease).encode())
        self._expires = expires

    def _read(self) -> Holder | None:
        try:
            lease: Holder = json.loads(self._place.read_bytes(LEASE_NAME))
        except (FileNotFoundError, ValueError):
            return None
        return lease if {"token", "host", "process", "started", "expires"} <= lease.keys() else None


def named(holder: Holder) -> str:
    """Who holds a lease, for people."""
    return f"process {holder['process']} on {holder['host']}"


def alive(lease: Holder) -> bool:
    """Whether the lease's holder may still be working."""
    if lease["host"] == socket.gethostname():
        return process_start(int(lease["process"])) == lease["started"]
    return time.time() < float(lease["expires"])


def process_start(process: int) -> float:
    """When a process was created, which tells it from a later one of the same number; 0 when it does not run."""
    try:
        running = psutil.Process(process)
        return 0.0 if running.status() == psutil.STATUS_ZOMBIE else float(running.create_time())
    except psutil.NoSuchProcess:
        return 0.0
