"""Law: whichever process of a host is killed, the others hear of it at once, and nothing of it is left.

The feeder's memory has no name and is not of /dev/shm; here it is found by its inode, as long as any process has it.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.laws.test_stream import plain, tables
from tests.sampling.fed_processes import SECONDS, FeederSpec, RankSpec, Speaking, digests
from tests.sampling.graphs import two_type_graph

pytestmark = pytest.mark.soak
"""real clusters and processes, minutes together"""

AT_ONCE_SECONDS = 10.0
"""for a process to hear of another's end, and to end itself"""
MANY_STEPS = 5000
SMALL_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh")
"""runs a command with a /dev/shm of 64 MB"""


def open_files(pid: int | str) -> Iterator[tuple[str, int]]:
    """(name, inode) of whatever a process has open or mapped."""
    for folder in ("fd", "map_files"):
        try:
            links = list(Path(f"/proc/{pid}/{folder}").iterdir())
        except OSError:
            continue
        for link in links:
            try:
                yield os.readlink(link), link.stat().st_ino
            except OSError:
                continue


def shared_memory(pid: int) -> int:
    """Inode of the memory that a feeder serves from."""
    inodes = {inode for name, inode in open_files(pid) if "hopstream-batches" in name}
    assert len(inodes) == 1
    return inodes.pop()


def users(inode: int) -> list[str]:
    """Processes that have it still."""
    found = [process.name for process in Path("/proc").iterdir() if process.name.isdigit()]
    return [pid for pid in found if any(inode == one for name, one in open_files(pid) if "hopstream-batches" in name)]


def is_there(address: str) -> bool:
    """Whether anybody listens at a feeder's address, or is connected to it."""
    return address.partition(":")[0] in Path("/proc/net/unix").read_text()


class Host:
    """A feeder and its ranks, every one of which has got a batch."""

    def __init__(
        self, running: ExitStack, *, world_size: int = 2, dim: int = 16, wrap: tuple[str, ...] = (), pause: float = 0.01
    ) -> None:
        self.shm = set(os.listdir("/dev/shm"))
        ranks = tuple(range(world_size))
        self.feeder = running.enter_context(
            Speaking(FeederSpec(ranks=ranks, world_size=world_size, dim=dim), wrap=SMALL_SHM)
        )
        self.address: str = self.feeder.next()["address"]
        specs = [RankSpec(address=self.address, rank=rank, last=MANY_STEPS, work_seconds=pause) for rank in ranks]
        self.ranks = [running.enter_context(Speaking(spec, wrap=SMALL_SHM)) for spec in specs]
        for rank in self.ranks:
            while "batch" not in rank.next():
                continue
        self.memory = shared_memory(self.feeder.process.pid)
        assert len(users(self.memory)) == 1 + world_size

    @property
    def processes(self) -> list[Speaking]:
        return [self.feeder, *self.ranks]

    def kill(self, process: Speaking) -> float:
        """Returns when all others have ended by themselves; seconds that took."""
        os.kill(process.process.pid, signal.SIGKILL)
        began = time.monotonic()
        for other in self.processes:
            if other is not process:
                other.rest()
        process.process.wait(SECONDS)
        return time.monotonic() - began

    def is_gone(self) -> bool:
        """Nothing is left: no process, no memory, no socket, no file in /dev/shm."""
        assert all(one.process.poll() is not None for one in self.processes)
        assert users(self.memory) == []
        assert not is_there(self.address)
        assert {name for name in set(os.listdir("/dev/shm")) - self.shm if "hopstream" in name} == set()
        return True


def test_when_a_rank_is_killed_the_feeder_and_the_other_ranks_end_with_an_error() -> None:
    with ExitStack() as running:
        host = Host(running)
        assert is_there(host.address)
        assert host.kill(host.ranks[1]) <= AT_ONCE_SECONDS
        for other in (host.feeder, host.ranks[0]):
            assert other.said("error") == ["FeedingFailed"]
            assert "rank 1 has ended before it was done (killed" in other.said("text")[0]
            assert other.process.returncode == 1
        assert host.is_gone()


def test_when_the_feeder_is_killed_every_rank_ends_with_an_error() -> None:
    with ExitStack() as running:
        host = Host(running)
        assert host.kill(host.feeder) <= AT_ONCE_SECONDS
        for rank in host.ranks:
            assert rank.said("error") == ["FeedingFailed"]
            assert "the feeder of this host has ended (killed, or out of memory)" in rank.said("text")[0]
            assert rank.process.returncode == 1
        assert host.is_gone()


def test_ranks_that_wait_for_the_first_batch_hear_of_the_feeders_end() -> None:
    with ExitStack() as running:
        feeder = running.enter_context(Speaking(FeederSpec(ranks=(0,), world_size=1, wait_seconds=SECONDS)))
        rank = running.enter_context(Speaking(RankSpec(address=feeder.next()["address"], rank=0)))
        deadline = time.monotonic() + SECONDS
        while not any("hopstream-batches" in name for name, _ in open_files(rank.process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        feeder.process.kill()
        rank.rest()
        assert rank.said("error") == ["FeedingFailed"]
        assert "has ended" in rank.said("text")[0]


def test_a_rank_that_goes_on_with_its_batch_after_the_feeder_was_killed_reads_what_was_there() -> None:
    with ExitStack() as running:
        host = Host(running, world_size=1, pause=0.5)
        (rank,) = host.ranks
        host.kill(host.feeder)
        seen = rank.said("batch")
        assert seen == digests(plain(two_type_graph(), tables()))[: len(seen)]
        assert len(seen) >= 2
        assert host.is_gone()


def test_batches_do_not_live_in_dev_shm_so_a_small_one_is_enough() -> None:
    """In a container /dev/shm has 64 MB by default; here it really has, and batches take more than that at once.

    Memory of memfd_create is on a file system of the kernel's own, which is mounted nowhere and has no size.
    """
    with ExitStack() as running:
        if subprocess.run([*SMALL_SHM, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
            pytest.skip("needs the right to mount a small /dev/shm")
        spec = FeederSpec(ranks=(0, 1), world_size=2, dim=1 << 16)
        feeder = running.enter_context(Speaking(spec, wrap=SMALL_SHM))
        address = feeder.next()["address"]
        specs = [RankSpec(address=address, rank=rank) for rank in (0, 1)]
        ranks = [running.enter_context(Speaking(spec, wrap=SMALL_SHM)) for spec in specs]
        for number, rank in enumerate(ranks):
            rank.rest()
            expected = plain(two_type_graph(), tables(1 << 16), rank=number, world_size=2)
            assert rank.said("batch") == digests(expected)
        feeder.rest()
        assert feeder.said("peak_bytes")[0] > 128 << 20


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_whoever_is_killed_and_whenever(seed: int) -> None:
    chosen = random.Random(seed)
    with ExitStack() as running:
        host = Host(running, world_size=chosen.choice([1, 2, 4]), dim=1 << chosen.randint(4, 14), pause=0.0)
        time.sleep(chosen.random())
        victim = chosen.choice(host.processes)
        assert host.kill(victim) <= AT_ONCE_SECONDS
        for other in host.processes:
            if other is not victim:
                assert other.said("error") == ["FeedingFailed"]
        assert host.is_gone()
