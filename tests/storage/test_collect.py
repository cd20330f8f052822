"""What removing old generations leaves, frees, and refuses."""

from pathlib import Path

import numpy as np
import pytest

from storage.append import append
from storage.claim import UNFINISHED
from storage.collect import collect
from storage.compact import compact
from storage.errors import BadInput, DamagedStore
from storage.ingest import ingest
from storage.known_generations import generation_numbers
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from storage.verify import verify
from tests.storage.growing import all_bytes, checksums, read_edges, shop


class Interrupt(NoProgress):
    """Ctrl-C when a stage begins."""

    def __init__(self, at: str) -> None:
        self._at = at

    def stage(self, name: str, *, total: int, unit: str) -> None:
        if name == self._at:
            raise KeyboardInterrupt


def grown(folder: Path, out: str) -> None:
    """Generations 0, 1 and 2: ingested, grown, compacted."""
    tables = shop(31).write(folder / "tables")
    ingest(tables.first(), out=out)
    append(tables.later(), out=out)
    compact(out)


def test_only_the_files_of_kept_generations_stay(tmp_path: Path) -> None:
    out = tmp_path / "store"
    grown(tmp_path, str(out))
    before, expected = all_bytes(out), read_edges(Store.open(str(out)))
    planned = collect(str(out), dry_run=True)
    assert all_bytes(out) == before
    done = collect(str(out))
    assert (planned.files, planned.freed_bytes) == (done.files, done.freed_bytes)
    assert (done.kept, done.removed) == ((2,), (0, 1))
    after = all_bytes(out)
    assert set(before) - set(after) == set(done.files)
    assert sum(len(before[name]) for name in done.files) == done.freed_bytes
    store = Store.open(str(out))
    named = {name for info in store.generation.files() for name in (info.name, info.sums_name)}
    assert set(after) == named | {"manifest.json", "generations/2.json", "generations/2.manifest.json"}
    assert read_edges(store) == expected
    assert verify(str(out)).is_whole
    assert generation_numbers(store.place) == [2]
    assert collect(str(out)).files == ()


def test_kept_generations_can_still_be_opened(tmp_path: Path) -> None:
    out = str(tmp_path / "store")
    grown(tmp_path, out)
    assert collect(out, keep=5).removed == ()
    expected = read_edges(Store.open(out, generation=1))
    assert collect(out, keep=2).removed == (0,)
    assert read_edges(Store.open(out, generation=1)) == expected
    with pytest.raises(BadInput, match="no generation 0: generations of this store: 1, 2"):
        Store.open(out, generation=0)


def test_a_reader_with_open_files_reads_on(tmp_path: Path) -> None:
    out = str(tmp_path / "store")
    grown(tmp_path, out)
    table = Store.open(out, generation=0).features("user")
    assert table is not None
    before, after = (np.empty((table.num_rows, table.dim), dtype=table.dtype) for _ in range(2))
    table.gather(np.arange(table.num_rows), before)
    collect(out)
    table.gather(np.arange(table.num_rows), after)
    table.close()
    assert before.tolist() == after.tolist()


def test_what_an_interrupted_writer_left_is_removed_when_nobody_holds_the_place(tmp_path: Path) -> None:
    out = tmp_path / "store"
    tables = shop(31).write(tmp_path / "tables")
    ingest(tables.first(), out=str(out))
    append(tables.later(), out=str(out))  # so that there is something to compact
    collect(str(out))
    before = all_bytes(out)
    with pytest.raises(KeyboardInterrupt):
        compact(str(out), progress=Interrupt("commit"))
    (out / "nodes/user/features.3.npy.partial").write_bytes(b"half")
    assert (out / UNFINISHED).exists()

    class Second(NoProgress):
        refused = False

        def stage(self, name: str, *, total: int, unit: str) -> None:
            with pytest.raises(BadInput, match="another ingest is writing there"):
                collect(str(out))
            self.refused = True

    done = collect(str(out))
    assert done.removed == ()
    assert "nodes/user/features.3.npy.partial" in done.files
    assert all_bytes(out) == before
    second = Second()
    compact(str(out), progress=second)
    assert second.refused


def test_another_change_in_place_of_an_interrupted_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    tables = shop(32).write(tmp_path / "tables")
    fresh = ingest(tables.first(), out=str(tmp_path / "store"))
    with pytest.raises(KeyboardInterrupt):
        append(tables.later(), out=str(tmp_path / "store"), progress=Interrupt("commit"))
    done = compact(str(tmp_path / "store"))
    assert checksums(done) == checksums(fresh)
    assert collect(str(tmp_path / "store"), keep=2).files == ()


def test_damage_that_hides_which_files_are_needed_ends_it(tmp_path: Path) -> None:
    out = tmp_path / "store"
    grown(tmp_path, str(out))
    path = out / "generations/1.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    before = all_bytes(out)
    with pytest.raises(DamagedStore, match=r"generations/1\.json: changed"):
        collect(str(out))
    assert all_bytes(out) == before
    with pytest.raises(BadInput, match=r"--keep: 0"):
        collect(str(out), keep=0)
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        collect(str(tmp_path / "nowhere"))


def test_a_store_elsewhere_is_cleared_too(tmp_path: Path) -> None:
    out = f"memory://{tmp_path.name}/store"
    grown(tmp_path, out)
    done = collect(out)
    assert done.removed == (0, 1)
    assert verify(out).is_whole
    place = Place(out)
    assert not [name for name in done.files if place.exists(name)]
