"""A disk that is full: one clear line, the stores on it as they were, and with room the same command goes on.

The disks are small file systems in memory, which only a privileged user may mount.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from storage.store import Store
from storage.verify import verify
from tests.data import small_store, write_tables
from tests.processes import hopstream

MIB = 1 << 20
BALLAST = "ballast"
STAGES = [
    "read nodes", "map ids", "read edges", "count degrees", "order nodes", "arrange nodes", "write nodes",
    "arrange edges", "write edges", "commit",
]  # fmt: skip


class Disk:
    """A mounted file system of a stated size."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, num_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={num_bytes}", str(self.path)], check=True)

    def used(self) -> int:
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self, *, leave: int) -> None:
        """Take all room but `leave` bytes, as another program might."""
        found = os.statvfs(self.path)
        with open(self.path / BALLAST, "wb") as file:
            file.write(b"\1" * max(0, found.f_bavail * found.f_frsize - leave))

    def free(self) -> None:
        (self.path / BALLAST).unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={64 * MIB}", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@dataclass(frozen=True)
class Graph:
    """Tables, and a store of them on a disk with room."""

    nodes: str
    edges: str
    store: Path

    @property
    def settings(self) -> IngestSettings:
        return IngestSettings(nodes={"node": self.nodes}, edges={"node:to:node": self.edges}, undirected=True)

    def options(self, out: Path, work: Path, *more: str) -> tuple[str, ...]:
        return ("ingest", "--nodes", self.nodes, "--edges", self.edges, *more, "--out", str(out), "--work", str(work))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    write_tables(folder, num_nodes=20_000, num_edges=200_000)
    found = Graph(f"{folder}/nodes.parquet", f"{folder}/edges.parquet", folder / "store")
    ingest(found.settings, out=str(found.store))
    return found


def all_bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


class Filler(NoProgress):
    """Another program fills the disk when a stage begins."""

    def __init__(self, disk: Disk, *, at: str, leave: int) -> None:
        self._disk, self._at, self._leave = disk, at, leave

    def stage(self, name: str, *, total: int, unit: str) -> None:
        if name == self._at:
            self._disk.fill(leave=self._leave)


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_up_stops_the_ingest_and_the_same_one_goes_on(disk: Disk, graph: Graph, stage: str) -> None:
    small_store(disk.path / "old")
    before = all_bytes(disk.path / "old" / "store")
    # with some room, the file that does not fit is the first of the stage, or a later one, or its last bytes
    for leave in (0, 60 << 10, MIB):
        out = disk.path / f"store-{leave}"
        try:
            ingest(graph.settings, out=str(out), progress=Filler(disk, at=stage, leave=leave))
        except OSError as error:
            check_message(str(error), place=out, work=out / "ingest.unfinished")
            assert not (out / "manifest.json").exists()
            assert all_bytes(disk.path / "old" / "store") == before
            disk.free()
            ingest(graph.settings, out=str(out))
        disk.free()
        assert all_bytes(out) == all_bytes(graph.store), f"{leave} bytes left"
    assert verify(str(disk.path / "old" / "store")).bad == ()


def check_message(line: str, *, place: Path, work: Path) -> None:
    assert f"{place}: the disk is full" in line
    assert f"temporary files in {work}" in line
    assert "free some space and give the same command" in line
    assert "Traceback" not in line


def check_command(done: "subprocess.CompletedProcess[str]", *, place: Path, work: Path) -> None:
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    check_message(done.stderr, place=place, work=work)
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_the_command_says_which_disk_is_full_and_goes_on_when_there_is_room(
    tmp_path: Path, disk: Disk, graph: Graph
) -> None:
    small_store(disk.path / "old")
    before = all_bytes(disk.path / "old" / "store")
    out, work = disk.path / "store", tmp_path / "work"
    disk.resize(disk.used() + 2 * MIB)
    command = graph.options(out, work, "--undirected")
    done = hopstream(*command)
    [folder] = work.iterdir()
    check_command(done, place=out, work=folder)
    assert all_bytes(disk.path / "old" / "store") == before
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        Store.open(str(out))
    disk.resize(64 * MIB)
    done = hopstream(*command)
    assert done.returncode == 0, done.stderr
    assert all_bytes(out) == all_bytes(graph.store)
    assert list(work.iterdir()) == []


def test_a_store_that_grows_on_a_full_disk_stays_as_it_was(tmp_path: Path, disk: Disk, graph: Graph) -> None:
    small, work = small_store(disk.path / "old"), tmp_path / "work"
    shutil.copytree(small, tmp_path / "store")
    before = all_bytes(small)
    # ids of the two graphs overlap: the new ones are those above
    nodes, more = pq.read_table(graph.nodes), tmp_path / "more.parquet"
    pq.write_table(nodes.slice(300), more)
    grown = Graph(str(more), graph.edges, graph.store)
    for store, room in ((tmp_path / "store", None), (small, 256 << 10)):
        command = grown.options(store, work, "--append")
        if room is not None:
            disk.resize(disk.used() + room)
            done = hopstream(*command)
            [folder] = work.iterdir()
            check_command(done, place=store, work=folder)
            assert {name: data for name, data in all_bytes(store).items() if name in before} == before
            assert Store.open(str(store)).generation.generation == 0
            assert verify(str(store)).bad == ()
            disk.resize(64 * MIB)
        done = hopstream(*command)
        assert done.returncode == 0, done.stderr
    assert all_bytes(small) == all_bytes(tmp_path / "store")


@pytest.mark.parametrize("append", [False, True])
def test_a_disk_without_room_for_the_temporary_files_is_refused_beforehand(
    disk: Disk, graph: Graph, append: bool
) -> None:
    out = small_store(disk.path / "old") if append else disk.path / "store"
    before = all_bytes(disk.path)
    disk.resize(disk.used() + MIB)
    done = hopstream(
        "ingest", "--edges", graph.edges, "--nodes", graph.nodes, *["--append"] * append, "--out", str(out)
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert f"error: {out}/ingest.unfinished: " in done.stderr
    assert "name a folder on another disk with --work" in done.stderr
    assert all_bytes(disk.path) == before
