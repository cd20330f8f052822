"""A lease in the run's storage: one process group at a time works on a run.

The lease names host, process and an expiry, and is renewed while the run lives. A lease whose process is gone
from this host, or whose expiry has passed, is taken over; so the same command works at once after a kill -9.
"""

import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType

import psutil

from storage.errors import BadInput
from storage.place import Place

LEASE_NAME = "lease.json"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0


class Lease:
    """Holds `lease.json` of a run's folder for the length of a `with` block.

    Raises BadInput on entry when another living process holds it.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hopstream-lease", daemon=True)

    def __enter__(self) -> "Lease":
        holder = self._read()
        if holder is not None and alive(holder):
            raise BadInput(
                self._place.full(LEASE_NAME),
                f"held by process {holder['process']} on {holder['host']}",
                rule="one process works on a run at a time",
                remedy="wait for it or stop it; a lost lease expires within a minute",
            )
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        holder = self._read()
        if holder is not None and holder["token"] == self._token:
            self._place.remove(LEASE_NAME)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            self._write()

    def _write(self) -> None:
        lease = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": process_start(os.getpid()),
            "expires": time.time() + LEASE_SECONDS,
        }
        self._place.write_bytes(LEASE_NAME, json.dumps(lease).encode())

    def _read(self) -> dict[str, str | int | float] | None:
        try:
            lease: dict[str, str | int | float] = json.loads(self._place.read_bytes(LEASE_NAME))
        except (FileNotFoundError, ValueError):
            return None
        return lease if {"token", "host", "process", "started", "expires"} <= lease.keys() else None


def alive(lease: dict[str, str | int | float]) -> bool:
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
