"""The least that superbatches must read: the distinct pages that hold a miss of Belady's, which knows the whole trace.

    python -m tests.benchmarks.out_of_core_floor --data FOLDER --cache-bytes BYTES --superbatches 99-142,142-185

The cache has all of the feature memory, nothing static, and the trace of all batches is known from the start, so no
plan with that memory misses less; a page that holds several missed rows of a superbatch counts once. Runs in a process
of its own without a cap: the trace itself takes memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Residency
from sampling.neighbors import NeighborSampler
from sampling.read_cost import read_cost
from tests.benchmarks.contender import BenchStore, Seeds, arguments, fanouts_of


def floor_bytes(
    trace: Sequence[NDArray[Any]],
    superbatches: Sequence[tuple[int, int]],
    *,
    num_rows: int,
    row_bytes: int,
    cache_bytes: int,
) -> int:
    """Bytes of superbatches [first, last) of the recorded rows of every batch from the first on."""
    residency = Residency(num_rows=num_rows, num_slots=cache_bytes // row_bytes)
    misses = [plan.miss_row for plan in residency.plan(list(trace))]
    return sum(
        read_cost(misses[first:last], num_rows=num_rows, row_bytes=row_bytes, gap_bytes=0).num_bytes
        for first, last in superbatches
    )


def main() -> None:
    """Record the trace again, which is a pure function of its seeds, and print the floor in bytes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--superbatches", required=True, help="first-last of each, the last one left out")
    options = parser.parse_args()
    superbatches = [tuple(map(int, pair.split("-"))) for pair in options.superbatches.split(",")]
    bench = BenchStore(options)
    seeds = Seeds(options, num_nodes=bench.num_nodes)
    sampler = NeighborSampler(bench.topology("memory"), fanouts=fanouts_of(options), seed=0)
    trace = [
        sampler.sample(seeds.of(step), epoch=0, step=step).nodes.astype(np.int32) for step in range(superbatches[-1][1])
    ]
    table = bench.plain(bench.features)
    row_bytes = table.shape[1] * table.itemsize
    print(
        floor_bytes(
            trace,
            [(first, last) for first, last in superbatches],
            num_rows=table.shape[0],
            row_bytes=row_bytes,
            cache_bytes=options.cache_bytes,
        )
    )


if __name__ == "__main__":
    main()
