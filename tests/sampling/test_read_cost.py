"""What reads cost, beside a plain walk over the distinct pages."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampling.read_cost import ReadCost, read_cost
from storage.block_reads import STAGING_BYTES
from storage.npy import HEADER_BYTES
from storage.pages import PAGE_BYTES


def walked(rows: list[int], *, row_bytes: int, gap_bytes: int) -> ReadCost:
    """The runs of the pages that hold the rows."""
    pages = {
        page
        for row in rows
        for page in range(
            (HEADER_BYTES + row * row_bytes) // PAGE_BYTES, (HEADER_BYTES + (row + 1) * row_bytes - 1) // PAGE_BYTES + 1
        )
    }
    longest = max(STAGING_BYTES, row_bytes + 2 * PAGE_BYTES) // PAGE_BYTES
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and page - runs[-1][1] <= gap_bytes // PAGE_BYTES and page + 1 - runs[-1][0] <= longest:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    return ReadCost(sum(last - first for first, last in runs) * PAGE_BYTES, len(runs))


@settings(deadline=None)
@given(
    batches=st.lists(st.lists(st.integers(0, 2999), max_size=40), max_size=5),
    row_bytes=st.sampled_from([4, 100, 256, 4096, 5000]),
    gap_bytes=st.sampled_from([0, 4096, 9000, 1 << 20]),
)
def test_sorted_rows_and_marked_pages_cost_what_a_walk_over_the_pages_costs(
    batches: list[list[int]], row_bytes: int, gap_bytes: int
) -> None:
    expected = walked([row for rows in batches for row in rows], row_bytes=row_bytes, gap_bytes=gap_bytes)
    arrays = [np.array(rows, dtype=np.int32) for rows in batches]
    for pages_a_row in (0, 1 << 40):  # always sorted, never unless there are none
        found = read_cost(arrays, num_rows=3000, row_bytes=row_bytes, gap_bytes=gap_bytes, pages_a_row=pages_a_row)
        assert found == expected
