"""Law: a store that grew and lost is, compacted, a fresh ingest; killed anywhere, the same command ends it so."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.append import append
from storage.collect import collect
from storage.compact import compact
from storage.delete import DeleteSettings, delete
from storage.ingest import ingest
from storage.refresh import RefreshSettings, refresh
from storage.store import Store
from storage.verify import verify
from tests.data import ROOT
from tests.storage.growing import all_bytes, checksums, expected_edges, read_edges, shop

CHILD = """
import os, signal, sys
from storage.append import append
from storage.append_settings import AppendSettings
from storage.collect import collect
from storage.compact import compact
from storage.delete import DeleteSettings, delete
from storage.ingest_settings import IngestResources
from storage.refresh import RefreshSettings, refresh

kind, given, store, limit = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
one = IngestResources(num_workers=1)
count = 0

def on_event(event, args):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"):
        if str(args[0]).startswith(store) or event == "os.rmdir":  # rmtree names what it removes by its last part
            count += 1
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(on_event)
if kind == "append":
    append(AppendSettings.model_validate_json(given), out=store, resources=one)
elif kind == "delete":
    delete(DeleteSettings.model_validate_json(given), out=store, resources=one)
elif kind == "refresh":
    refresh(RefreshSettings.model_validate_json(given), out=store, resources=one)
elif kind == "compact":
    compact(store, resources=one)
else:
    collect(store)
print(count)
"""


@dataclass
class Command:
    """A change of a store: as a process that dies at its nth touch of a file, or here to the end."""

    kind: str
    given: str
    run: Callable[[str], object]

    def count(self, store: Path) -> int:
        """How often a whole run touches files of the store."""
        done = self._start(store, limit=0)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def kill(self, store: Path, *, at: int) -> None:
        """Run until touch number `at`, and no further."""
        assert self._start(store, limit=at).returncode == -signal.SIGKILL

    def _start(self, store: Path, *, limit: int) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", CHILD, self.kind, self.given, str(store), str(limit)],
            check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def prepared(folder: Path) -> tuple[Path, dict[str, Command]]:
    """A store of three generations, and every kind of change that it can undergo."""
    tables = shop(41).write(folder / "tables")
    store = folder / "store"
    ingest(tables.first(undirected=True), out=str(store))
    names = tables.tables["user"]["id"]
    pq.write_table(pa.table({"id": names.slice(2, 4)}), folder / "gone.parquet")
    gone = DeleteSettings(nodes={"user": str(folder / "gone.parquet")})
    pq.write_table(tables.tables["user"].slice(20, 9).select(["id", "features"]), folder / "new.parquet")
    new = RefreshSettings(features={"user": str(folder / "new.parquet")})
    later = tables.later()
    commands = {
        "append": Command("append", later.model_dump_json(), lambda out: append(later, out=out)),
        "delete": Command("delete", gone.model_dump_json(), lambda out: delete(gone, out=out)),
        "refresh": Command("refresh", new.model_dump_json(), lambda out: refresh(new, out=out)),
        "compact": Command("compact", "", compact),
        "gc": Command("gc", "", collect),
    }
    return store, commands


def check_kills(folder: Path, kind: str, *, num_kills: int, seed: int) -> None:
    store, commands = prepared(folder)
    command = commands[kind]
    if kind in ("compact", "gc"):  # of a store with something to do
        for before in ("append", "delete"):
            commands[before].run(str(store))
    whole = folder / "whole"
    shutil.copytree(store, whole)
    old = read_edges(Store.open(str(store)))
    total = command.count(whole)
    expected = all_bytes(whole)
    choose = random.Random(seed)
    points = sorted({1, total, *(choose.randint(1, total) for _ in range(num_kills))})
    for at in points:
        killed = folder / f"killed-{at}"
        shutil.copytree(store, killed)
        command.kill(killed, at=at)
        found = Store.open(str(killed))  # what is there is a store, the old one or the new one
        if found.generation.generation == Store.open(str(store)).generation.generation:
            assert read_edges(found) == old
        command.run(str(killed))
        assert all_bytes(killed) == expected, (kind, at, total)
        shutil.rmtree(killed)


@pytest.mark.parametrize("kind", ["append", "compact", "delete", "refresh", "gc"])
def test_after_a_kill_the_same_command_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    check_kills(tmp_path, kind, num_kills=2, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["append", "compact", "delete", "refresh", "gc"])
def test_many_kills_change_nothing(tmp_path: Path, kind: str) -> None:
    check_kills(tmp_path, kind, num_kills=25, seed=2)


def test_another_command_after_a_kill_leaves_nothing_of_the_killed_one(tmp_path: Path) -> None:
    store, commands = prepared(tmp_path)
    whole = tmp_path / "whole"
    shutil.copytree(store, whole)
    commands["delete"].run(str(whole))
    total = commands["append"].count(tmp_path / shutil.copytree(store, tmp_path / "counted"))
    for share in (0.5, 0.75):  # both before the commit
        killed = tmp_path / f"killed-{share}"
        shutil.copytree(store, killed)
        commands["append"].kill(killed, at=int(share * total))
        commands["delete"].run(str(killed))
        assert all_bytes(killed) == all_bytes(whole)


@settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    seed=st.integers(0, 1000),
    users=st.integers(8, 60),
    items=st.integers(8, 50),
    share=st.floats(0.5, 0.95),
    undirected=st.booleans(),
    order=st.sampled_from(["hotness", "input"]),
    fanout=st.lists(st.sampled_from([-1, 1, 2, 7]), max_size=3).map(tuple),
)
def test_grown_and_compacted_stores_are_fresh_ones(
    tmp_path: Path,
    seed: int,
    users: int,
    items: int,
    share: float,
    undirected: bool,
    order: str,
    fanout: tuple[int, ...],
) -> None:
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    tables = shop(seed, users=users, items=items, share=share).write(folder / "tables")
    how = {"undirected": undirected, "order": order, "fanout": fanout}
    out = str(folder / "store")
    fresh = ingest(tables.whole(**how), out=str(folder / "fresh"))
    ingest(tables.first(**how), out=out)
    append(tables.later(), out=out)
    found, expected = read_edges(Store.open(out)), expected_edges(tables, undirected=undirected)
    assert {name: Counter(edges) for name, edges in found.items()} == {
        name: Counter(edges) for name, edges in expected.items()
    }
    assert checksums(compact(out)) == checksums(fresh)
    assert verify(out).is_whole
