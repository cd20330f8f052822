"""Which rows a device keeps, and tables that begin behind them."""

import numpy as np
import pytest
import torch

from sampling.device_rows import default_cache_bytes, device_rows, rows_behind, tables_behind
from tests.sampling.tables import ArrayTable


def table_of(num_rows: int, dim: int, dtype: str) -> ArrayTable:
    return ArrayTable(np.random.default_rng(0).integers(0, 100, (num_rows, dim)).astype(dtype))


def test_a_budget_is_shared_by_size_in_whole_pages_of_a_table_or_all_of_it() -> None:
    tables = [table_of(1000, 32, "float16"), None, table_of(1000, 128, "float16"), table_of(9000, 3, "uint8")]
    size = 64_000 + 256_000 + 27_000
    assert device_rows(tables, cache_bytes=0) == [0, 0, 0, 0]
    assert device_rows(tables, cache_bytes=size) == [1000, 0, 1000, 9000]
    assert device_rows(tables, cache_bytes=10 * size) == [1000, 0, 1000, 9000]
    half = device_rows(tables, cache_bytes=size // 2)
    assert half == [448, 0, 496, 4096]
    assert [rows * row % 4096 for rows, row in zip(half, [64, 0, 256, 3], strict=True)] == [0, 0, 0, 0]
    assert device_rows(tables, cache_bytes=4096) == [0, 0, 0, 0]


def test_a_cpu_keeps_none_unless_asked_to() -> None:
    assert default_cache_bytes(torch.device("cpu")) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a share of its memory")
def test_a_gpu_gives_a_share_of_what_is_left() -> None:
    free, _ = torch.cuda.mem_get_info()
    assert 0 < default_cache_bytes(torch.device("cuda")) < free


@pytest.mark.parametrize("first", [0, 1, 50, 99, 100, 200])
def test_a_table_behind_a_prefix_serves_the_rows_of_the_whole_one(first: int) -> None:
    table = table_of(100, 5, "float32")
    (behind,) = tables_behind([table], [first])
    assert behind is not None
    assert behind.num_rows == max(0, 100 - first)
    rows = np.random.default_rng(1).integers(0, 100, 60)
    left = rows_behind(rows, first)
    out = np.empty((left.shape[0], 5), dtype=np.float32)
    behind.gather(left, out)
    assert np.array_equal(out, table.table[rows[rows >= first]])


def test_an_absent_table_stays_absent_and_nothing_kept_changes_nothing() -> None:
    table = table_of(10, 2, "int8")
    assert tables_behind([None, table], [3, 0]) == [None, table]
