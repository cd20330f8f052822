"""What `verify` says of a store that is whole, and of every kind of damage at once."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.verify import PART_BYTES, verify
from tests.storage.damage import flipped_byte, missing, shortened
from tests.storage.two_segments import write_two_segments

FEATURES = "nodes/paper/features.1.npy"


class Heard:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def stage(self, name: str, *, total: int, unit: str) -> None:
        assert (name, unit) == ("verify", "pages")
        self.total = total

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_two_segments(str(tmp_path / "store"))
    return tmp_path / "store"


def lines(folder: Path | str) -> list[str]:
    return [str(place) for place in verify(str(folder)).bad]


def test_a_whole_store_is_counted_in_full(store: Path) -> None:
    heard = Heard()
    found = verify(str(store), progress=heard)
    files = [path for path in store.rglob("*") if path.is_file()]
    paged = [path for path in files if path.suffix != ".json" and ".sums." not in path.name]
    assert found.is_whole
    assert found.generations == (0, 1)
    assert found.num_files == len(files)
    assert found.num_bytes == sum(path.stat().st_size for path in files)
    assert found.num_pages == sum(-(-path.stat().st_size // 4096) for path in paged) == heard.total == heard.done


def test_a_store_elsewhere_is_verified_too() -> None:
    write_two_segments("memory://verified")
    place = Place("memory://verified")
    assert verify(place.url).is_whole
    data = bytearray(place.read_bytes(FEATURES))
    data[5000] ^= 1
    place.write_bytes(FEATURES, bytes(data))
    assert lines(place.url) == [f"{FEATURES}, page 1, bytes 4096 to 8191: changed"]


def test_all_damage_is_listed_by_file_and_position(store: Path) -> None:
    cites = store / "edges/paper__cites__paper"
    size = (cites / "weight.0.npy").stat().st_size
    with (
        flipped_byte(store / FEATURES, 4096 * 3),
        flipped_byte(store / FEATURES, 4096 * 2 + 7),
        flipped_byte(store / FEATURES, 4096 * 5),
        missing(store / "nodes/author/lookup.0.npy"),
        missing(cites / "indptr.1.sums.npy"),
        shortened(cites / "weight.0.npy", num_bytes=5000),
    ):
        heard = Heard()
        found = verify(str(store), progress=heard)
        assert heard.done == heard.total == found.num_pages
        assert [str(place) for place in found.bad] == [
            "edges/paper__cites__paper/indptr.1.sums.npy: missing",
            f"edges/paper__cites__paper/weight.0.npy, pages 1 to 3, bytes 5000 to {size - 1}: short",
            "nodes/author/lookup.0.npy: missing",
            f"{FEATURES}, pages 2 to 3, bytes 8192 to 16383: changed",
            f"{FEATURES}, page 5, bytes 20480 to 24575: changed",
        ]
        assert not found.is_whole
    assert verify(str(store)).is_whole


def test_bytes_too_many_are_damage(store: Path) -> None:
    size = (store / FEATURES).stat().st_size
    with (store / FEATURES).open("ab") as file:
        file.write(b"more")
    assert lines(store) == [f"{FEATURES}, page {size // 4096}, bytes {size} to {size + 3}: changed"]


def test_sums_and_data_that_both_changed_are_both_named(store: Path) -> None:
    sums = FEATURES.replace(".npy", ".sums.npy")
    with flipped_byte(store / sums, 4096 + 4 * 2), flipped_byte(store / FEATURES, 4096 * 4):
        assert [line.partition(", bytes")[0] for line in lines(store)] == [
            f"{FEATURES}, page 2",
            f"{FEATURES}, page 4",
            sums,
        ]
    with flipped_byte(store / sums, 4096 + 4 * 2 + 1), flipped_byte(store / sums, 17):
        assert lines(store) == [
            f"{sums}, page 0, bytes 17 to 17: changed",
            f"{sums}, page 1, bytes 4105 to 4105: changed",
        ]


def test_a_generation_that_is_gone_is_named_and_the_others_are_checked(store: Path) -> None:
    with missing(store / "generations/1.json"):
        found = verify(str(store))
        assert [str(place) for place in found.bad] == ["generations/1.json: missing"]
        assert found.generations == (0,)
        assert found.num_pages > 0
    with missing(store / "generations/1.manifest.json"):
        assert lines(store) == ["generations/1.manifest.json: missing"]


def test_a_generation_that_was_never_committed_is_no_damage(store: Path) -> None:
    (store / "generations/2.json").write_text("half of a gen")
    assert verify(str(store)).is_whole


def test_a_rewritten_generation_is_named_not_its_manifest(store: Path) -> None:
    (store / "generations/0.json").write_text("{}")
    assert lines(store) == ["generations/0.json, bytes 0 to 1: changed"]


def test_what_is_no_store_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no manifest\.json"):
        verify(str(tmp_path / "nothing"))
    for path in [*store.glob("generations/*.manifest.json"), store / "manifest.json"]:
        path.write_text(path.read_text().replace('"format_version":1', '"format_version":2'))
    with pytest.raises(BadInput, match="format version 2"):
        verify(str(store))


def test_files_of_many_parts_are_checked_to_the_last_page(tmp_path: Path) -> None:
    rows = 3 * PART_BYTES // 4096 + 5
    write_features(tmp_path, np.random.default_rng(1).integers(0, 256, (rows, 4096), dtype=np.uint8))
    store = tmp_path / "store"
    found = verify(str(store), num_threads=3)
    assert found.is_whole
    name = "nodes/node/features.0.npy"
    last = os.path.getsize(store / name) // 4096 - 1
    with flipped_byte(store / name, last * 4096 + 4095), flipped_byte(store / name, PART_BYTES + 1):
        assert [place.page for place in verify(str(store), num_threads=3).bad] == [PART_BYTES // 4096, last]


def write_features(folder: Path, rows: NDArray[np.uint8]) -> None:
    """A store of one type with these features."""
    features = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    pq.write_table(pa.table({"id": np.arange(len(rows)), "features": features}), folder / "nodes.parquet")
    pq.write_table(pa.table({"src": [0], "dst": [1]}), folder / "edges.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")}, edges={"node:to:node": str(folder / "edges.parquet")}
    )
    ingest(settings, out=str(folder / "store"))
