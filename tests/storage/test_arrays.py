from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from storage.arrays import ArrayWriter, read_array, write_array
from storage.errors import DamagedStore
from storage.place import Place
from tests.storage.damage import flipped_byte, missing, shortened

RNG = np.random.default_rng(11)
ARRAYS: list[NDArray[Any]] = [
    RNG.standard_normal((1000, 7), dtype=np.float32),
    RNG.standard_normal((3, 2000)).astype(np.float16),
    RNG.integers(-128, 127, (999, 5), dtype=np.int8),
    np.arange(512, dtype=np.int64),
    np.zeros((0, 4), dtype=np.float32),
    np.zeros(3, dtype=[("hash", "<u8"), ("row", "<i8")]),
    np.arange(6, dtype=">i4"),
    np.arange(40, dtype=np.int32).reshape(5, 8).T,
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.name}{array.shape}")
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_an_array_is_read_as_it_was_written_by_us_and_by_numpy(array: NDArray[Any], kind: str, tmp_path: Path) -> None:
    place = Place(str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}")
    info = write_array(place, "folder/a.0.npy", array)
    found = read_array(place, info)
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)
    if kind == "local":
        np.testing.assert_array_equal(np.load(tmp_path / "folder/a.0.npy"), array)


def test_rows_begin_at_byte_4096_and_sums_cover_every_page(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (100, 333), dtype=np.uint8)
    info = write_array(Place(str(tmp_path)), "a.0.npy", array)
    raw = (tmp_path / "a.0.npy").read_bytes()
    assert raw[4096:] == array.tobytes()
    assert (info.num_bytes, info.num_pages) == (len(raw), -(-len(raw) // 4096))
    sums = np.load(tmp_path / "a.0.sums.npy")
    assert sums.tolist() == [xxhash.xxh64_intdigest(raw[at : at + 4096]) >> 32 for at in range(0, len(raw), 4096)]
    assert info.sums_xxh64 == xxhash.xxh64_hexdigest(sums.tobytes())


@pytest.mark.parametrize("dim", [1, 3, 1000, 5000])
def test_an_array_may_be_written_in_pieces_of_any_size(dim: int, tmp_path: Path) -> None:
    rows = RNG.integers(0, 256, (6000, dim), dtype=np.uint8)[: 3_000_000 // dim]
    with ArrayWriter(Place(str(tmp_path)), "a.npy", dtype="uint8", shape=rows.shape) as writer:
        start = 0
        while start < rows.shape[0]:
            stop = start + int(RNG.integers(0, 700))
            writer.write(rows[start:stop])
            start = stop
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), rows)
    np.testing.assert_array_equal(read_array(Place(str(tmp_path)), writer.info), rows)


def test_a_large_array_is_read_in_parts(tmp_path: Path) -> None:
    rows = RNG.integers(0, 2**60, (1_300_001,), dtype=np.int64)
    info = write_array(Place(str(tmp_path)), "a.npy", rows)
    np.testing.assert_array_equal(read_array(Place(str(tmp_path)), info), rows)


def test_missing_rows_surplus_rows_and_other_types_leave_no_file(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    bad: list[tuple[str, NDArray[Any]]] = [
        ("1 rows written of 2", np.zeros((1, 2), dtype=np.float32)),
        ("more than 2 rows", np.zeros((3, 2), dtype=np.float32)),
        ("rows float64", np.zeros((2, 2))),
        ("belong", np.zeros((2, 3), dtype=np.float32)),
    ]
    for message, rows in bad:
        with (
            pytest.raises(ValueError, match=message),
            ArrayWriter(place, "a.npy", dtype="float32", shape=(2, 2)) as writer,
        ):
            writer.write(rows)
        assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_in_any_page_is_named(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    info = write_array(place, "a.0.npy", RNG.integers(0, 256, (50, 777), dtype=np.uint8))
    for page in range(info.num_pages):
        last = min((page + 1) * 4096, info.num_bytes) - 1
        for at in (page * 4096, last, int(RNG.integers(page * 4096, last))):
            message = rf"a\.0\.npy: page {page} has changed"
            with flipped_byte(tmp_path / "a.0.npy", at), pytest.raises(DamagedStore, match=message):
                read_array(place, info)
    for at in range(0, (tmp_path / "a.0.sums.npy").stat().st_size, 61):
        with (
            flipped_byte(tmp_path / "a.0.sums.npy", at),
            pytest.raises(DamagedStore, match=r"a\.0\.sums\.npy: "),
        ):
            read_array(place, info)
    read_array(place, info)


@pytest.mark.parametrize("name", ["a.0.npy", "a.0.sums.npy"])
def test_a_short_or_missing_file_is_named(name: str, tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    info = write_array(place, "a.0.npy", np.arange(5000))
    with shortened(tmp_path / name, num_bytes=4096), pytest.raises(DamagedStore, match=f"{name}: .* bytes"):
        read_array(place, info)
    with missing(tmp_path / name), pytest.raises(DamagedStore, match=f"{name}: missing file"):
        read_array(place, info)


def test_damage_elsewhere_than_on_a_local_disk_is_named_too() -> None:
    place = Place("memory://arrays-damage")
    info = write_array(place, "a.0.npy", np.arange(5000))
    raw = bytearray(place.read_bytes("a.0.npy"))
    raw[5000] ^= 1
    place.write_bytes("a.0.npy", bytes(raw))
    with pytest.raises(DamagedStore, match=r"memory://arrays-damage/a\.0\.npy: page 1 has changed"):
        read_array(place, info)
