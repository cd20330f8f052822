from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.arrays import ArrayWriter, write_array
from storage.errors import DamagedStore
from storage.features import FeatureFile, SegmentedFeatures
from storage.place import Place
from storage.row_runs import plan
from storage.schema import FileInfo
from tests.storage.damage import flipped_byte, missing, shortened

RNG = np.random.default_rng(13)
DTYPES = ("float32", "float16", "uint8", "int8")


def random_rows(num_rows: int, dim: int, dtype: str) -> NDArray[Any]:
    size = num_rows * dim * np.dtype(dtype).itemsize
    return RNG.integers(0, 256, size, dtype=np.uint8).view(dtype).reshape(num_rows, dim)


def open_file(place: Place, info: FileInfo, table: NDArray[Any], **options: Any) -> FeatureFile:
    return FeatureFile(place, info, num_rows=table.shape[0], dim=table.shape[1], dtype=table.dtype, **options)


def gathered(features: FeatureFile | SegmentedFeatures, rows: NDArray[np.int64]) -> NDArray[Any]:
    out = np.full((rows.shape[0], features.dim), 77, dtype=features.dtype)
    features.gather(rows, out)
    return out


def assert_same_bits(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.view(np.uint8), expected.view(np.uint8))


def some_rows(num_rows: int) -> list[NDArray[np.int64]]:
    return [
        np.arange(num_rows),
        np.arange(num_rows)[::-1].copy(),
        RNG.permutation(num_rows),
        RNG.integers(0, num_rows, 300),
        np.zeros(50, dtype=np.int64),
        np.array([num_rows - 1]),
        np.array([], dtype=np.int64),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 32, 250, 1500])
def test_rows_are_those_of_the_plain_array_bit_for_bit(dtype: str, dim: int, tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    info = write_array(place, "f.0.npy", random_rows(1500, dim, dtype))
    plain = np.load(tmp_path / "f.0.npy")
    features = open_file(place, info, plain)
    for rows in some_rows(1500):
        assert_same_bits(gathered(features, rows), plain[rows])
    features.close()


@pytest.mark.parametrize("options", [{"direct": False}, {"num_threads": 1}, {"max_gap_bytes": 0}])
@pytest.mark.parametrize("dim", [3, 1024, 2049])
def test_no_option_changes_what_is_read(options: dict[str, Any], dim: int, tmp_path: Path) -> None:
    plain = random_rows(4_000_000 // dim // 4, dim, "float32")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain, **options)
    for rows in some_rows(plain.shape[0]):
        assert_same_bits(gathered(features, rows), plain[rows])
    features.close()


def test_a_row_may_be_longer_than_the_staging_buffer(tmp_path: Path) -> None:
    plain = random_rows(5, 700_001, "float16")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain)
    rows = np.array([4, 0, 2, 4, 1, 3])
    assert_same_bits(gathered(features, rows), plain[rows])
    features.close()


def test_rows_elsewhere_than_on_a_local_disk_are_the_same() -> None:
    plain = random_rows(3000, 100, "float32")
    place = Place("memory://features-elsewhere")
    features = open_file(place, write_array(place, "f.0.npy", plain), plain)
    for rows in some_rows(3000):
        assert_same_bits(gathered(features, rows), plain[rows])
    features.close()


def test_rows_written_in_this_process_can_be_read_at_once(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    rows = np.arange(64)
    for _ in range(3):
        plain = random_rows(64, 256, "float32")
        with ArrayWriter(place, "hidden.npy", dtype="float32", shape=(64, 256)) as writer:
            writer.write(plain)
        features = open_file(place, writer.info, plain)
        assert_same_bits(gathered(features, rows), plain)
        features.close()


def test_several_threads_may_gather_from_one_file(tmp_path: Path) -> None:
    plain = random_rows(20_000, 64, "float32")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain, num_threads=2)
    requests = [RNG.integers(0, 20_000, RNG.integers(1, 5000)) for _ in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda rows: gathered(features, rows), requests))
    for rows, answer in zip(requests, found, strict=True):
        assert_same_bits(answer, plain[rows])
    assert features.counters.requests == sum(rows.shape[0] for rows in requests)
    features.close()


def test_counters_count_rows_and_device_bytes(tmp_path: Path) -> None:
    plain = random_rows(1000, 1024, "float32")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain, max_gap_bytes=0)
    gathered(features, np.array([0, 0, 500, 1]))
    counters = features.counters
    assert (counters.requests, counters.hits, counters.bytes) == (4, 4, 3 * 4096)
    assert counters.seconds > 0
    gathered(features, np.array([], dtype=np.int64))
    assert features.counters.bytes == counters.bytes
    features.close()


def test_runs_are_merged_across_gaps_and_each_page_is_read_once() -> None:
    given = {"row_bytes": 512, "max_run_pages": 256, "num_threads": 4}
    rows = np.array([8 * 30, 0, 7, 8 * 17, 1])  # pages 31, 1, 1, 18, 1 of the file
    runs = plan(rows, max_gap_bytes=0, **given)
    assert (runs.first_page.tolist(), runs.num_pages.tolist()) == ([1, 18, 31], [1, 1, 1])
    assert runs.first_row.tolist() == [0, 3, 4, 5]
    runs = plan(rows, max_gap_bytes=12 * 4096, **given)
    assert (runs.first_page.tolist(), runs.num_pages.tolist()) == ([1, 18], [1, 14])
    runs = plan(rows, max_gap_bytes=16 * 4096, **given)
    assert (runs.first_page.tolist(), runs.num_pages.tolist()) == ([1], [31])


def test_no_run_is_longer_than_a_staging_buffer_and_units_cover_all_runs() -> None:
    rows = np.arange(100_000)
    runs = plan(rows, row_bytes=1000, max_gap_bytes=1 << 20, max_run_pages=16, num_threads=4)
    assert runs.num_pages.max() <= 16
    assert runs.cuts[0] == 0
    assert runs.cuts[-1] == runs.first_page.shape[0]
    assert (np.diff(runs.cuts) > 0).all()
    assert 8 <= runs.cuts.shape[0] - 1 <= 32
    last_byte = 4096 + (runs.rows[runs.first_row[1:] - 1] + 1) * 1000
    assert (last_byte <= (runs.first_page + runs.num_pages) * 4096).all()


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_outside_the_table_is_refused(row: int, tmp_path: Path) -> None:
    plain = random_rows(10, 4, "float32")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain)
    for table in (features, SegmentedFeatures([features])):
        with pytest.raises(IndexError, match=f"{row} .*of a table of 10 rows"):
            gathered(table, np.array([3, row]))
    features.close()


def test_an_output_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    plain = random_rows(10, 4, "float32")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain)
    for out in (np.empty((2, 4)), np.empty((3, 4), np.float32), np.empty((4, 2), np.float32).T):
        with pytest.raises(ValueError, match="out is"):
            features.gather(np.array([0, 1]), out)
    features.close()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_flipped_byte_in_any_page_is_named_and_its_rows_are_not_served(kind: str, tmp_path: Path) -> None:
    plain = random_rows(100, 1000, "uint8")
    place = Place(str(tmp_path) if kind == "local" else "memory://features-damage")
    info = write_array(place, "f.0.npy", plain)
    raw = place.read_bytes("f.0.npy")
    features = open_file(place, info, plain, max_gap_bytes=0)
    for page in range(1, info.num_pages):
        at = int(RNG.integers(page * 4096, min((page + 1) * 4096, info.num_bytes)))
        place.write_bytes("f.0.npy", raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        harmed = open_file(place, info, plain, max_gap_bytes=0)
        with pytest.raises(DamagedStore, match=rf"f\.0\.npy: page {page} has changed"):
            gathered(harmed, RNG.permutation(100))
        hit = (np.arange(100) * 1000 + 4096) // 4096 <= page
        hit &= (np.arange(100) * 1000 + 5095) // 4096 >= page
        with pytest.raises(DamagedStore, match=f"page {page} has"):
            gathered(harmed, np.flatnonzero(hit)[:1])
        harmed.close()
    place.write_bytes("f.0.npy", raw[:100] + b"!" + raw[101:])
    with pytest.raises(DamagedStore, match=r"f\.0\.npy: page 0 has changed"):
        open_file(place, info, plain)
    features.close()


@pytest.mark.parametrize("name", ["f.0.npy", "f.0.sums.npy"])
def test_a_short_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    plain = random_rows(100, 1000, "uint8")
    place = Place(str(tmp_path))
    info = write_array(place, "f.0.npy", plain)
    with shortened(tmp_path / name, num_bytes=4100), pytest.raises(DamagedStore, match=f"{name}: 4100 bytes"):
        open_file(place, info, plain)
    with missing(tmp_path / name), pytest.raises(DamagedStore, match=f"{name}: missing file"):
        open_file(place, info, plain)
    with flipped_byte(tmp_path / "f.0.sums.npy", 4100), pytest.raises(DamagedStore, match=r"sums\.npy"):
        open_file(place, info, plain)


def test_a_file_that_shrinks_while_open_is_named(tmp_path: Path) -> None:
    plain = random_rows(100, 1000, "uint8")
    place = Place(str(tmp_path))
    features = open_file(place, write_array(place, "f.0.npy", plain), plain)
    with shortened(tmp_path / "f.0.npy", num_bytes=3 * 4096):
        gathered(features, np.array([0]))
        with pytest.raises(DamagedStore, match=r"f\.0\.npy: file ends before the end of page 5"):
            gathered(features, np.array([20]))
    features.close()


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    plain = random_rows(100, 8, "uint8")
    place = Place(str(tmp_path))
    info = write_array(place, "f.0.npy", plain)
    for other in (plain.reshape(200, 4), plain.view(np.int8), plain[:50]):
        with pytest.raises(DamagedStore, match="not an array"):
            open_file(place, info, other)


def test_segments_read_as_one_table(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    tables = [random_rows(count, 9, "float16") for count in (500, 1, 0, 300)]
    parts = [
        open_file(place, write_array(place, f"f.{number}.npy", table), table) for number, table in enumerate(tables)
    ]
    features = SegmentedFeatures(parts)
    plain = np.concatenate(tables)
    assert (features.num_rows, features.dim) == (801, 9)
    assert features.dtype == np.float16
    for rows in [*some_rows(801), np.arange(10), np.arange(790, 800)]:
        assert_same_bits(gathered(features, rows), plain[rows])
    assert features.counters.requests == sum(part.counters.requests for part in parts)
    features.close()


def test_segments_of_another_width_are_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    tables = [random_rows(5, 4, "uint8"), random_rows(5, 3, "uint8")]
    parts = [
        open_file(place, write_array(place, f"f.{number}.npy", table), table) for number, table in enumerate(tables)
    ]
    with pytest.raises(ValueError, match="a part of 3 uint8 among 4 uint8"):
        SegmentedFeatures(parts)
    for part in parts:
        part.close()
