"""Law: what any tier serves equals a plain array, bit for bit, and is counted.

The tiers are the array itself, a stored file read past the page cache, the same file read through it, a table of
several segments, and a table in a store elsewhere than on a local disk; each alone, and with host memory in front.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampling.host_tier import HostTier, share_cache_bytes
from storage.arrays import write_array
from storage.features import FeatureFile, Features, SegmentedFeatures, StoredFeatures
from storage.place import Place
from tests.sampling.tables import ArrayTable

DTYPES = ["float32", "float16", "uint8", "int8"]


def random_table(dtype: str, num_rows: int, dim: int) -> NDArray[Any]:
    """Any bits at all, those of NaN included."""
    rng = np.random.default_rng(num_rows * dim)
    raw = rng.integers(0, 256, (num_rows, dim * np.dtype(dtype).itemsize), dtype=np.uint8)
    return raw.view(dtype)


def stored(table: NDArray[Any], place: Place, name: str, *, direct: bool = True) -> FeatureFile:
    """The table as a file at `place`, opened."""
    info = write_array(place, name, table)
    num_rows, dim = table.shape
    return FeatureFile(place, info, num_rows=num_rows, dim=dim, dtype=table.dtype, num_threads=2, direct=direct)


def in_segments(table: NDArray[Any], folder: Path) -> StoredFeatures:
    """The table in three files, the middle one without rows where the table is short."""
    cuts = [0, len(table) // 3, len(table) // 2, len(table)]
    return SegmentedFeatures(
        [
            stored(table[begin:end], Place(str(folder)), f"features.{number}.npy")
            for number, (begin, end) in enumerate(pairwise(cuts))
        ]
    )


TIERS: dict[str, Callable[[NDArray[Any], Path], StoredFeatures]] = {
    "file, past the page cache": lambda table, folder: stored(table, Place(str(folder)), "features.0.npy"),
    "file, through the page cache": lambda table, folder: stored(
        table, Place(str(folder)), "features.0.npy", direct=False
    ),
    "segments": in_segments,
    "store in memory": lambda table, _: stored(table, Place("memory://law-of-tiers"), "features.0.npy"),
}


@contextmanager
def opened(tier: str, table: NDArray[Any]) -> Iterator[StoredFeatures]:
    """The tier over files of its own."""
    with tempfile.TemporaryDirectory() as folder:
        features = TIERS[tier](table, Path(folder))
        try:
            yield features
        finally:
            features.close()


def gathered(features: Features, rows: NDArray[np.int64]) -> bytes:
    out = np.full((rows.size, features.dim), 77, dtype=features.dtype)
    features.gather(rows, out)
    return out.tobytes()


@pytest.mark.parametrize("tier", TIERS)
@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    num_rows=st.integers(1, 300),
    dim=st.sampled_from([1, 3, 40, 700, 1500]),
    share=st.floats(0, 1.2),
    data=st.data(),
)
def test_every_tier_serves_the_bytes_of_the_plain_array_alone_and_behind_host_memory(
    tier: str, dtype: str, num_rows: int, dim: int, share: float, data: st.DataObject
) -> None:
    table = random_table(dtype, num_rows, dim)
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=80)), dtype=np.int64)
    with opened(tier, table) as below:
        assert (below.num_rows, below.dim, below.dtype) == (num_rows, dim, table.dtype)
        assert gathered(below, rows) == table[rows].tobytes()
        assert gathered(below, np.arange(num_rows)) == table.tobytes()
        assert below.counters.requests == below.counters.hits == rows.size + num_rows
        host = HostTier(below, cache_bytes=int(share * table.nbytes))
        before = below.counters.requests
        assert gathered(host, rows) == table[rows].tobytes()
        assert host.counters.requests == rows.size
        assert host.counters.hits == int((rows < host.num_cached).sum())
        assert below.counters.requests - before == rows.size - host.counters.hits


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    num_rows=st.integers(1, 60),
    dim=st.integers(1, 40),
    share=st.floats(0, 1.2),
    data=st.data(),
)
def test_the_host_tier_serves_the_bytes_of_the_table(
    dtype: str, num_rows: int, dim: int, share: float, data: st.DataObject
) -> None:
    table = random_table(dtype, num_rows, dim)
    below = ArrayTable(table)
    tier = HostTier(below, cache_bytes=int(share * table.nbytes))
    assert tier.num_cached == min(num_rows, int(share * table.nbytes) // (dim * table.itemsize))
    below.num_asked = 0
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=80)), dtype=np.int64)
    out = np.empty((rows.size, dim), dtype=table.dtype)
    tier.gather(rows, out)
    assert out.tobytes() == table[rows].tobytes()
    assert tier.counters.requests == rows.size
    assert tier.counters.hits == int((rows < tier.num_cached).sum())
    assert below.num_asked == rows.size - tier.counters.hits


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_an_empty_and_an_ample_budget_both_work(cache_bytes: int) -> None:
    table = random_table("float32", 30, 7)
    tier = HostTier(ArrayTable(table), cache_bytes=cache_bytes)
    out = np.empty_like(table)
    tier.gather(np.arange(30), out)
    assert out.tobytes() == table.tobytes()


def test_one_budget_is_shared_by_table_size_and_never_passes_it() -> None:
    tables = [ArrayTable(random_table("uint8", 100, 30)), None, ArrayTable(random_table("uint8", 100, 10))]
    assert share_cache_bytes(tables, cache_bytes=2000) == [1500, 0, 500]
    assert share_cache_bytes(tables, cache_bytes=10**6) == [3000, 0, 1000]
    assert share_cache_bytes([None], cache_bytes=5) == [0]
