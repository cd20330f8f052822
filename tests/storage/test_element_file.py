from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.arrays import write_array
from storage.element_file import ElementFile, ElementPool
from storage.errors import DamagedStore
from storage.place import Place
from storage.schema import FileInfo
from tests.storage.damage import flipped_byte, missing, shortened

RNG = np.random.default_rng(5)
LENGTH = 700_001
"""two blocks and a bit of 4-byte elements, five of 8-byte ones"""
CACHES = [0, 4096, 1 << 20, 3_000_000, 1 << 30]


@pytest.fixture(scope="module")
def pool() -> Iterator[ElementPool]:
    opened = ElementPool(num_threads=4)
    yield opened
    opened.close()


def numbers(dtype: str, length: int = LENGTH) -> NDArray[Any]:
    if dtype == "float32":
        return RNG.random(length, dtype=np.float32)
    return RNG.integers(0, 2**31 - 1, length).astype(dtype)


def written(folder: Path, array: NDArray[Any]) -> tuple[Place, FileInfo]:
    place = Place(str(folder))
    return place, write_array(place, "a.0.npy", array)


def some_places(length: int) -> list[NDArray[np.int64]]:
    return [
        np.empty(0, dtype=np.int64),
        np.array([length - 1, 0, -1, length - 1]),
        np.arange(length)[::-1].copy(),
        RNG.integers(-5, length, 200_000),
        RNG.integers(0, 50, 100_000),
        RNG.integers(length - 50, length, 100_000),
        RNG.integers(0, length, 30),
    ]


@pytest.mark.parametrize("cache_bytes", CACHES)
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_elements_are_those_of_the_plain_array_whatever_is_cached(
    tmp_path: Path, pool: ElementPool, dtype: str, cache_bytes: int
) -> None:
    array = numbers(dtype)
    file = ElementFile(*written(tmp_path, array), pool=pool)
    file.cache(cache_bytes)
    assert file.num_cached * array.itemsize <= cache_bytes
    assert file.in_memory == (cache_bytes >= array.nbytes)
    for at in some_places(LENGTH):
        out = np.full(at.shape[0], 7, dtype=dtype)
        file.gather(at, out)
        np.testing.assert_array_equal(out, np.where(at >= 0, array[at], 7))
    file.close()


@pytest.mark.parametrize("scratch_bytes", [0, 800, 80_000])
@pytest.mark.parametrize("cache_bytes", [0, 8192])
def test_any_scratch_gives_the_same_elements(
    tmp_path: Path, pool: ElementPool, scratch_bytes: int, cache_bytes: int
) -> None:
    array = numbers("int32", 300_000)
    file = ElementFile(*written(tmp_path, array), pool=pool, scratch_bytes=scratch_bytes)
    file.cache(cache_bytes)
    for at in some_places(300_000):
        few = at[:: max(1, at.shape[0] // (2000 if scratch_bytes < 8000 else 200_000))]
        out = np.zeros(few.shape[0], dtype=np.int32)
        file.gather(few, out)
        np.testing.assert_array_equal(out, np.where(few >= 0, array[few], 0))
    file.close()


@pytest.mark.parametrize("options", [{"direct": False}, {"max_gap_bytes": 0}, {"max_gap_bytes": 1 << 20}])
def test_no_option_changes_what_is_read(tmp_path: Path, pool: ElementPool, options: dict[str, Any]) -> None:
    array = numbers("int32")
    file = ElementFile(*written(tmp_path, array), pool=pool, **options)
    for at in some_places(LENGTH):
        out = np.zeros(at.shape[0], dtype=np.int32)
        file.gather(at, out)
        np.testing.assert_array_equal(out, np.where(at >= 0, array[at], 0))
    file.close()


@pytest.mark.parametrize("at_dtype", ["int32", "int64"])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_places_are_replaced_by_complements_and_negative_ones_stay(
    tmp_path: Path, pool: ElementPool, at_dtype: str, cache_bytes: int
) -> None:
    array = numbers("int32")
    file = ElementFile(*written(tmp_path, array), pool=pool, scratch_bytes=100_000)
    file.cache(cache_bytes)
    for places in some_places(LENGTH):
        at = places.astype(at_dtype)
        file.replace(at)
        np.testing.assert_array_equal(at, np.where(places >= 0, ~array[places].astype(np.int64), places))
    file.close()


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("cache_bytes", CACHES)
def test_spans_are_where_lists_begin_and_how_long_they_are(
    tmp_path: Path, pool: ElementPool, dtype: str, cache_bytes: int
) -> None:
    pointers = np.cumsum(RNG.integers(0, 9, LENGTH)).astype(dtype)
    file = ElementFile(*written(tmp_path, pointers), pool=pool)
    file.cache(cache_bytes)
    for at in some_places(LENGTH - 1):
        begin, degree = np.full(at.shape[0], 3, dtype=dtype), np.full(at.shape[0], 4, dtype=np.int32)
        file.spans(at, begin, degree)
        np.testing.assert_array_equal(begin, np.where(at >= 0, pointers[at], 3))
        np.testing.assert_array_equal(degree, np.where(at >= 0, pointers[at + 1] - pointers[at], 4))
        again = np.full(at.shape[0], 4, dtype=np.int32)
        file.spans(at, np.empty(0, dtype=dtype), again)
        np.testing.assert_array_equal(again, degree)
    file.close()


def test_arrays_elsewhere_than_on_a_local_disk_are_the_same(pool: ElementPool) -> None:
    array = numbers("int32")
    place = Place("memory://elements-elsewhere")
    file = ElementFile(place, write_array(place, "a.0.npy", array), pool=pool)
    file.cache(4096)
    for at in some_places(LENGTH):
        out = np.zeros(at.shape[0], dtype=np.int32)
        file.gather(at, out)
        np.testing.assert_array_equal(out, np.where(at >= 0, array[at], 0))
    file.close()


def test_an_empty_array_has_no_places(tmp_path: Path, pool: ElementPool) -> None:
    file = ElementFile(*written(tmp_path, np.empty(0, dtype=np.int32)), pool=pool)
    file.cache(10)
    file.gather(np.array([-1]), np.zeros(1, dtype=np.int32))
    with pytest.raises(IndexError, match="place 0 of 0"):
        file.gather(np.array([0]), np.zeros(1, dtype=np.int32))
    file.close()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_a_place_outside_the_array_is_refused(tmp_path: Path, pool: ElementPool, cache_bytes: int) -> None:
    file = ElementFile(*written(tmp_path, np.arange(1000)), pool=pool)
    file.cache(cache_bytes)
    out = np.zeros(2, dtype=np.int64)
    with pytest.raises(IndexError, match=r"a\.0\.npy: place 1000 of 1000"):
        file.gather(np.array([5, 1000]), out)
    with pytest.raises(IndexError, match="place 999 of 999"):
        file.spans(np.array([5, 999]), out, np.zeros(2, dtype=np.int32))
    file.close()


def test_a_page_is_read_once_and_only_when_it_is_wanted(tmp_path: Path, pool: ElementPool) -> None:
    array = numbers("int32")
    file = ElementFile(*written(tmp_path, array), pool=pool, max_gap_bytes=0)
    out = np.empty(4000, dtype=np.int32)
    file.gather(np.repeat(np.array([5, 1024, 1025, 600_000]), 1000), out)
    assert file.counters.bytes == 3 * 4096
    assert (file.counters.requests, file.counters.hits) == (4000, 0)
    file.cache(4096)
    file.gather(np.repeat(np.array([5, 1024, 1025, 600_000]), 1000), out)
    assert file.counters.bytes == 5 * 4096
    assert (file.counters.requests, file.counters.hits) == (8000, 1000)
    file.close()


def test_small_gaps_are_read_through(tmp_path: Path, pool: ElementPool) -> None:
    file = ElementFile(*written(tmp_path, numbers("int32")), pool=pool, max_gap_bytes=8192)
    file.gather(np.array([0, 3 * 1024, 7 * 1024]), np.empty(3, dtype=np.int32))
    assert file.counters.bytes == 5 * 4096
    file.close()


def test_several_threads_may_look_up_at_once(tmp_path: Path, pool: ElementPool) -> None:
    array = numbers("int32")
    file = ElementFile(*written(tmp_path, array), pool=pool, scratch_bytes=80_000)
    file.cache(1 << 20)
    requests = [RNG.integers(0, LENGTH, RNG.integers(1, 50_000)) for _ in range(20)]

    def look_up(at: NDArray[np.int64]) -> NDArray[np.int32]:
        out = np.empty(at.shape[0], dtype=np.int32)
        file.gather(at, out)
        return out

    with ThreadPoolExecutor(4) as threads:
        for at, out in zip(requests, threads.map(look_up, requests), strict=True):
            np.testing.assert_array_equal(out, array[at])
    file.close()


def test_a_flipped_byte_is_named_when_its_page_is_read_and_only_then(tmp_path: Path, pool: ElementPool) -> None:
    place, info = written(tmp_path, numbers("int32"))
    file = ElementFile(place, info, pool=pool, max_gap_bytes=0)
    out = np.empty(2, dtype=np.int32)
    with flipped_byte(tmp_path / "a.0.npy", 400 * 4096 + 17):
        with pytest.raises(DamagedStore, match="page 400 has changed") as error:
            file.gather(np.array([3, 399 * 1024 + 1]), out)
        assert error.value.place == str(tmp_path / "a.0.npy")
        file.gather(np.array([3, 398 * 1024]), out)
        with pytest.raises(DamagedStore, match="page 400 has changed"):
            file.cache(1 << 30)
    file.close()


def test_a_missing_short_or_different_file_is_refused(tmp_path: Path, pool: ElementPool) -> None:
    place, info = written(tmp_path, numbers("int32", 5000))
    with missing(tmp_path / "a.0.npy"), pytest.raises(DamagedStore, match="missing file"):
        ElementFile(place, info, pool=pool)
    with shortened(tmp_path / "a.0.npy", num_bytes=8192), pytest.raises(DamagedStore, match="8192 bytes"):
        ElementFile(place, info, pool=pool)
    file = ElementFile(place, info, pool=pool)
    with shortened(tmp_path / "a.0.npy", num_bytes=8192), pytest.raises(DamagedStore, match="ends before"):
        file.gather(np.array([4000]), np.empty(1, dtype=np.int32))
    file.close()
    for array in (np.zeros((5, 2), dtype=np.int32), np.zeros(5, dtype=np.int16)):
        with pytest.raises(DamagedStore, match="not an array of this store"):
            ElementFile(place, write_array(place, "b.0.npy", array), pool=pool)
