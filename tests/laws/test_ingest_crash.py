"""Law: kill -9 at any point of an ingest, then the same command: the same files, and nothing half-written is read.

The kill falls on the Nth thing that the ingest does to a file of its store's folder, N drawn at random among all
that an undisturbed one does: so inside stages, between data and journal, between manifest and clean-up.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from storage.errors import BadInput
from storage.ingest import IngestResources, IngestSettings, ingest
from storage.store import Store
from tests.killed import DONE
from tests.processes import LIMIT_SECONDS, environment

NUM_USERS, NUM_ITEMS, FEATURE_DIM = 140_000, 30_000, 24
SMALL_MEMORY = "360MiB"
"""so little that tables, ranges of rows and ranges of targets are several pieces each"""
UNFINISHED = "ingest.unfinished"


def write_graph(folder: Path) -> IngestSettings:
    """Users with text ids and every column, items with numbers only; both relations get their reverse."""
    rng = np.random.default_rng(3)
    users = np.array([f"user-{i}" for i in rng.permutation(NUM_USERS)])
    items = rng.permutation(NUM_ITEMS) * 7 - 1000
    features = rng.standard_normal(NUM_USERS * FEATURE_DIM).astype(np.float32)

    def put(name: str, rows: int, **columns: Any) -> str:
        path = folder / f"{name}.parquet"
        # neither encoded nor compressed: then other values take the same room
        pq.write_table(pa.table(columns), path, row_group_size=rows, compression="none", use_dictionary=False)
        return str(path)

    nodes = {
        "user": put(
            "user",
            40_000,
            id=users,
            features=pa.FixedSizeListArray.from_arrays(features, FEATURE_DIM),
            label=rng.integers(-1, 5, NUM_USERS),
            split=np.array(["train", "val", "none"])[rng.integers(0, 3, NUM_USERS)],
            timestamp=rng.integers(0, 99, NUM_USERS),
        ),
        "item": put("item", 20_000, id=items),
    }
    edges = {
        "user:follows:user": put(
            "follows",
            50_000,
            src=users[rng.integers(0, NUM_USERS, 400_000)],
            dst=users[rng.integers(0, NUM_USERS // 3, 400_000)],
            weight=rng.random(400_000).astype(np.float32),
            timestamp=rng.integers(0, 1000, 400_000),
        ),
        "user:buys:item": put(
            "buys",
            50_000,
            src=users[rng.integers(0, NUM_USERS, 300_000)],
            dst=items[rng.integers(0, NUM_ITEMS, 300_000)],
        ),
    }
    return IngestSettings(nodes=nodes, edges=edges, undirected=True)


@dataclass(frozen=True)
class Ended:
    """How a command ended; `events` and `finished` (stages) only when it did so by itself."""

    returncode: int
    errors: str
    events: int
    finished: set[str]


def command(
    settings: IngestSettings,
    out: Path,
    *,
    kill_at: int,
    written: str | None = None,
    memory: str = SMALL_MEMORY,
    work: Path | None = None,
) -> Ended:
    """`hopstream ingest`, killed at its event number `kill_at`; 0 lets it end by itself.

    Events in the folder above `out` count. `written` is how the command line names `out`, seen from there.
    """
    report = out.parent.with_name("report.json")
    report.unlink(missing_ok=True)
    tables = [*settings.nodes.items(), *settings.edges.items()]
    words = [part for name, url in tables for part in ("--edges" if ":" in name else "--nodes", f"{name}={url}")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(out.parent), str(kill_at), str(report),
         "ingest", *words, "--undirected", "--out", written or str(out), "--memory", memory, "--workers", "2",
         *([] if work is None else ["--work", str(work)])],
        cwd=out.parent, env=environment(), capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    seen: dict[str, Any] = {"events": 0, "finished": []}
    if report.exists():
        seen = json.loads(report.read_text())
    return Ended(done.returncode, done.stderr, seen["events"], set(seen["finished"]))


def checksums(store: Path) -> dict[str, str]:
    """Of every file below, hidden and temporary ones too; folders without any are named as well."""
    found = {str(p.relative_to(store)): xxhash.xxh64_hexdigest(p.read_bytes()) for p in store.rglob("*") if p.is_file()}
    return found | {str(p.relative_to(store)): "empty" for p in store.rglob("*") if p.is_dir() and not any(p.iterdir())}


@dataclass(frozen=True)
class Whole:
    """The graph, what an undisturbed ingest of it leaves, and how it got there."""

    settings: IngestSettings
    files: dict[str, str]
    events: int
    stages: set[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "stores"
    folder.mkdir()
    settings = write_graph(folder.parent)
    ended = command(settings, folder / "store", kill_at=0)
    assert ended.returncode == 0, ended.errors
    return Whole(settings, checksums(folder / "store"), ended.events, ended.finished)


def stages_done(out: Path) -> set[str]:
    """Stages that a killed ingest had entered in its journal."""
    return {path.name.removesuffix(DONE) for path in out.parent.rglob(f"*{DONE}")}


def refuse_half_written(out: Path, whole: Whole) -> None:
    """What a killed ingest left is either no store, or a complete one."""
    with contextlib.suppress(BadInput):
        Store.open(str(out))
        left = {name: sum_ for name, sum_ in checksums(out).items() if not name.startswith(UNFINISHED)}
        assert left == whole.files


def same_ingest(choose: random.Random, out: Path) -> dict[str, Any]:
    """The place in other words, and another memory: what the ingest goes on with all the same."""
    spelled = [str(out), out.name, f"./x/../{out.name}/", f"file://{out}"]
    return {"written": choose.choice(spelled), "memory": choose.choice([SMALL_MEMORY, "500MiB"])}


def kill_until(whole: Whole, folder: Path, *, seed: int, kills: int) -> tuple[int, int]:
    """Ingests killed one to three times in a row and then left alone, until there were so many kills.

    Returns the number of kills, and of stages that need not be done again.
    """
    choose, done, skipped = random.Random(seed), 0, 0
    while done < kills:
        out, at = folder / "stores" / "store", 0
        out.parent.mkdir()
        work = choose.choice([None, None, out.with_name("work")])
        for _ in range(choose.randint(1, 3)):
            before, at = stages_done(out), choose.randint(1, whole.events - at)
            ended = command(whole.settings, out, kill_at=at, work=work, **same_ingest(choose, out))
            if ended.returncode != -signal.SIGKILL:
                break
            done += 1
            assert before <= stages_done(out) or (out / "manifest.json").exists()
            refuse_half_written(out, whole)
        else:
            committed, before = (out / "manifest.json").exists(), stages_done(out)
            ended = command(whole.settings, out, kill_at=0, work=work, **same_ingest(choose, out))
            assert ended.finished == (set() if committed else whole.stages - before), f"killed at {at}"
            skipped += len(before)
        assert ended.returncode == 0, f"killed at {at}: {ended.errors}"
        assert checksums(out) == whole.files, f"killed at {at}"
        assert [path for path in out.parent.rglob("*") if path.is_file() and out not in path.parents] == []
        shutil.rmtree(out.parent)
    return done, skipped


def test_a_killed_ingest_goes_on_to_the_same_files(whole: Whole, tmp_path: Path) -> None:
    _, skipped = kill_until(whole, tmp_path, seed=1, kills=6)
    assert skipped > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3])
def test_at_many_random_points_a_killed_ingest_goes_on_to_the_same_files(
    whole: Whole, tmp_path: Path, seed: int
) -> None:
    kills, skipped = kill_until(whole, tmp_path, seed=seed, kills=20)
    assert kills >= 20
    assert skipped > 0


@pytest.fixture
def killed(whole: Whole, tmp_path: Path) -> Path:
    """Where an ingest was killed when it had finished most stages."""
    out = tmp_path / "stores" / "store"
    out.parent.mkdir()
    assert command(whole.settings, out, kill_at=whole.events * 3 // 4).returncode == -signal.SIGKILL
    assert len(stages_done(out)) > len(whole.stages) // 2
    return out


RESOURCES = IngestResources.model_validate({"memory": SMALL_MEMORY, "workers": 2})


def test_after_a_kill_other_settings_start_anew(whole: Whole, killed: Path, tmp_path: Path) -> None:
    other = whole.settings.model_copy(update={"fanout": (3,), "undirected": False})
    for out in (killed, tmp_path / "fresh"):
        ingest(other, out=str(out), resources=RESOURCES)
    assert checksums(killed) == checksums(tmp_path / "fresh") != whole.files


def test_after_a_kill_a_changed_table_of_the_same_size_and_age_starts_anew(whole: Whole, tmp_path: Path) -> None:
    settings = write_graph(tmp_path)
    out, path = tmp_path / "stores" / "store", Path(settings.edges["user:follows:user"])
    out.parent.mkdir()
    assert command(settings, out, kill_at=whole.events * 3 // 4).returncode == -signal.SIGKILL
    assert "spill.user__follows__user" in stages_done(out)
    before, table = path.stat(), pq.read_table(path)
    turned = table.set_column(table.schema.get_field_index("weight"), "weight", table["weight"][::-1])
    pq.write_table(turned, path, row_group_size=50_000, compression="none", use_dictionary=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    for place in (out, tmp_path / "fresh"):
        ingest(settings, out=str(place), resources=RESOURCES)
    assert checksums(out) == checksums(tmp_path / "fresh")


def test_after_a_kill_the_half_written_folder_may_be_moved(whole: Whole, killed: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "store"
    moved.parent.mkdir()
    killed.rename(moved)
    ingest(whole.settings, out=str(moved), resources=RESOURCES)
    assert checksums(moved) == whole.files
