"""Law: what any tier serves equals a plain array, bit for bit, and is counted."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.host_tier import HostTier, share_cache_bytes
from tests.sampling.tables import ArrayTable


def random_table(dtype: str, num_rows: int, dim: int) -> np.typing.NDArray[Any]:
    rng = np.random.default_rng(num_rows * dim)
    raw = rng.integers(0, 256, (num_rows, dim * np.dtype(dtype).itemsize), dtype=np.uint8)
    return raw.view(dtype)


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(["float32", "float16", "uint8", "int8"]),
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
