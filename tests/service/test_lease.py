"""The lease: one process at a time works on a run, and one that has lost its lease stops."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import TrainingFailed
from service.lease import LEASE_NAME, Lease, process_start
from service.pretraining import pretrain
from service.run_file import load_run_file
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store

LIMIT_SECONDS = 60.0


def test_a_lease_is_held_once_and_released(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with Lease(place), pytest.raises(BadInput, match=f"held by process {os.getpid()}"), Lease(place):
        pass
    assert not (tmp_path / LEASE_NAME).exists()
    with Lease(place):
        assert (tmp_path / LEASE_NAME).exists()


def lease_of(process: int, *, host: str, expires: float) -> str:
    return json.dumps(
        {
            "token": "t",
            "host": host,
            "process": process,
            "started": process_start(process),
            "expires": expires,
        }
    )


def test_the_lease_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    held = lease_of(process.pid, host=socket.gethostname(), expires=time.time() + 1000)
    (tmp_path / LEASE_NAME).write_text(held)
    with pytest.raises(BadInput, match=str(process.pid)), Lease(Place(str(tmp_path))):
        pass
    process.kill()
    process.communicate()
    with Lease(Place(str(tmp_path))):
        pass


@pytest.mark.parametrize(("expires_in", "held"), [(1000.0, True), (-1.0, False)])
def test_the_lease_of_another_host_holds_until_it_expires(tmp_path: Path, expires_in: float, held: bool) -> None:
    (tmp_path / LEASE_NAME).write_text(lease_of(1, host="elsewhere", expires=time.time() + expires_in))
    if held:
        with pytest.raises(BadInput, match="on elsewhere"), Lease(Place(str(tmp_path))):
            pass
    else:
        with Lease(Place(str(tmp_path))):
            pass


def test_of_many_that_come_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    num = 8
    meet = threading.Barrier(num)

    def enter(folder: Path) -> str:
        lease = Lease(Place(str(folder)))
        meet.wait()
        try:
            with lease:
                meet.wait()  # all have tried
                return "held"
        except BadInput as error:
            meet.wait()
            return error.rule

    with ThreadPoolExecutor(num) as threads:
        for number in range(30):
            folder = tmp_path / str(number)
            answers = sorted(threads.map(enter, [folder] * num))
            assert answers == ["held", *["one process works on a run at a time"] * (num - 1)]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are renewed without waiting."""
    monkeypatch.setattr("service.lease.RENEW_SECONDS", 0.01)


def until_lost(place: Place, happens: Callable[[], None]) -> None:
    """Hold the lease while something `happens`, until the holder is told that it is lost."""
    told = threading.Event()
    with Lease(place) as lease:
        lease.on_lost(lambda _: told.set())
        lease.check()
        for _ in range(int(LIMIT_SECONDS)):  # a renewal under way may write over what happened once
            with contextlib.suppress(FileNotFoundError):
                happens()
            if told.wait(1.0):
                break
        assert told.is_set()
        with pytest.raises(TrainingFailed, match="the lease on this work was lost"):
            lease.check()
        late: list[str] = []
        lease.on_lost(late.append)
        assert len(late) == 1


def obstruct(folder: Path) -> None:
    """Put a folder where the next lease would be written, as soon as none is being written."""
    while True:
        try:
            (folder / f"{LEASE_NAME}.partial").mkdir()
            return
        except FileExistsError:
            pass


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("url", ["{}", "memory://lease-test"])
def test_a_lease_that_another_took_is_left_to_it_and_the_holder_is_told(tmp_path: Path, url: str) -> None:
    place = Place(url.format(tmp_path))
    others = lease_of(1, host="elsewhere", expires=time.time() + 1000).encode()
    with pytest.raises(TrainingFailed, match="held by process 1 on elsewhere"):
        until_lost(place, lambda: place.write_bytes(LEASE_NAME, others))
    assert place.read_bytes(LEASE_NAME) == others


@pytest.mark.usefixtures("often")
def test_a_lease_that_was_removed_is_lost(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="it was removed"):
        until_lost(Place(str(tmp_path)), (tmp_path / LEASE_NAME).unlink)
    assert not (tmp_path / LEASE_NAME).exists()


@pytest.mark.usefixtures("often")
def test_a_lease_that_cannot_be_renewed_is_lost_when_it_expires_and_not_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.lease.LEASE_SECONDS", 0.2)
    with pytest.raises(TrainingFailed, match=r"could not be renewed \(IsADirectoryError"):
        until_lost(Place(str(tmp_path)), lambda: obstruct(tmp_path))


@pytest.mark.usefixtures("often")
def test_an_error_in_renewing_that_passes_changes_nothing(tmp_path: Path) -> None:
    def expires() -> float:
        return float(json.loads((tmp_path / LEASE_NAME).read_text())["expires"])

    with Lease(Place(str(tmp_path))) as lease:
        obstruct(tmp_path)
        before = expires()
        (tmp_path / f"{LEASE_NAME}.partial").rmdir()
        deadline = time.monotonic() + LIMIT_SECONDS
        while expires() == before:
            assert time.monotonic() < deadline
        lease.check()


class TakenAway(NoProgress):
    """Another host takes the lease in the middle of training."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def advance(self, amount: int) -> None:
        if (self._folder / "checkpoints").exists():
            theirs = self._folder / "theirs"  # replaced whole, as a host writes it: half a lease would be none
            theirs.write_text(lease_of(1, host="elsewhere", expires=time.time() + 1000))
            theirs.replace(self._folder / LEASE_NAME)


@pytest.mark.usefixtures("often")
def test_a_run_whose_lease_was_taken_stops_with_the_reason_and_writes_no_state(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path, training={"epochs": 100_000})))
    folder = tmp_path / "runs" / "small"
    with pytest.raises(TrainingFailed, match="held by process 1 on elsewhere"):
        pretrain(run, progress=TakenAway(folder))
    assert json.loads((folder / "state.json").read_text())["state"] == "running"
    assert json.loads((folder / LEASE_NAME).read_text())["host"] == "elsewhere"
