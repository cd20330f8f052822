"""Edge segments merged on disk: the arrays of the merge in memory, nothing left behind, clear errors."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from storage import merged_edges as module
from storage.block_files import open_held
from storage.errors import BadInput, DamagedStore
from storage.merged_edges import merged_edges
from storage.schema import RelationInfo
from storage.store import Store
from tests.storage.damage import flipped_byte
from tests.storage.two_segments import CITES, write_two_segments


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = str(tmp_path_factory.mktemp("two-segments"))
    write_two_segments(folder)
    return Store.open(folder)


def merge(store: Store, info: RelationInfo, folder: str) -> dict[str, np.ndarray]:
    counts = (store.num_nodes(info.relation.source), store.num_nodes(info.relation.target))
    with merged_edges(store.place, info, num_sources=counts[0], num_targets=counts[1], folder=folder) as (place, found):
        names = ("indptr", "indices", "out_degree", "weight", "timestamp")
        files = {name: getattr(found, name) for name in names}
        return {name: np.load(f"{place.url}/{file.name}") for name, file in files.items() if file is not None}


@pytest.mark.parametrize(("targets", "edges"), [(1 << 16, 1 << 18), (7, 1 << 18), (1 << 16, 50), (100, 1)])
def test_merged_arrays_are_those_of_the_topology_in_memory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: int, edges: int
) -> None:
    monkeypatch.setattr(module, "PART_TARGETS", targets)
    monkeypatch.setattr(module, "PART_EDGES", edges)
    for info, expected in zip(store.relations, store.topology().relations, strict=True):
        found = merge(store, info, str(tmp_path / "merged"))
        for name, array in found.items():
            wanted = getattr(expected, name)
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)
        assert ("weight" in found) == (expected.weight is not None)
        assert ("timestamp" in found) == (expected.timestamp is not None)
    assert list((tmp_path / "merged").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(store: Store, tmp_path: Path) -> None:
    for name in ("merged-edges-dead", "merged-edges-live", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "held").touch()
    with open_held(str(tmp_path / "merged-edges-live" / "held")):
        merge(store, store.relations[0], str(tmp_path))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["merged-edges-live", "other"]


def test_a_flipped_byte_is_named_and_nothing_is_left(store: Store, tmp_path: Path) -> None:
    info = next(info for info in store.relations if info.relation == CITES)
    path = Path(store.place.url) / info.segments[1].indices.name
    with flipped_byte(path, path.stat().st_size - 1), pytest.raises(DamagedStore, match="has changed") as error:
        merge(store, info, str(tmp_path))
    assert error.value.place == str(path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line_and_nothing_is_left(store: Store, tmp_path: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], check=False)
    if done.returncode:
        pytest.skip("only a privileged user may mount a small disk")
    try:
        with pytest.raises(BadInput, match=r"no room for the merged edges of relation .* `hopstream compact`"):
            merge(store, store.relations[0], str(tmp_path))
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
