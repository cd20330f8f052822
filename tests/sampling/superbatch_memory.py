"""Samples superbatches from a stored graph in this process and prints what its memory grew by, and what was stated.

python -m tests.sampling.superbatch_memory STORE
"""

import json
import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sampling.superbatch_sampler import SuperbatchSampler
from storage.element_blocks import STAGING_PAGES
from storage.store import Store
from storage.stored_topology import StoredTopology

CACHE_BYTES, SCRATCH_BYTES, ANSWER_BYTES = 6 << 20, 4 << 20, 8 << 20
NUM_THREADS, NUM_READS = 2, 4
NUM_SEEDS, NUM_BATCHES, NUM_SUPERBATCHES = 1000, 8, 4
SCRATCH_BYTES_A_ROW = 28


def own_bytes() -> int:
    """Anonymous and shared pages of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def main() -> None:
    store = Store.open(sys.argv[1])
    num_nodes = int(store.type_offsets[-1])
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], own_bytes())

    def steps(superbatch: int) -> list[tuple[int, int, NDArray[np.int64]]]:
        first = superbatch * NUM_BATCHES
        return [
            (0, step, np.random.default_rng(step).choice(num_nodes, NUM_SEEDS, replace=False))
            for step in range(first, first + NUM_BATCHES)
        ]

    def run(count: int, cache_bytes: int) -> int:
        most = 0
        with StoredTopology(
            store, cache_bytes=cache_bytes, scratch_bytes=SCRATCH_BYTES, num_threads=NUM_READS
        ) as topology:
            sampler = SuperbatchSampler(
                topology, fanouts=(10, 10, 5), seed=0, num_threads=NUM_THREADS, answer_bytes=ANSWER_BYTES
            )
            for superbatch in sampler.stream(steps(number) for number in range(count)):
                batches = [superbatch.batch(number) for number in range(NUM_BATCHES)]
                most = max(most, *(batch.nodes.shape[0] + batch.num_edges for batch in batches))
            counters = sampler.counters
            sampler.close()
        return (
            cache_bytes
            + SCRATCH_BYTES
            + max(ANSWER_BYTES, counters.most_answer_bytes)
            + NUM_READS * STAGING_PAGES * 4096
            + NUM_THREADS * SCRATCH_BYTES_A_ROW * most
            + counters.most_state_bytes
        )

    run(1, 0)  # compiles
    before = own_bytes()
    thread = threading.Thread(target=watch)
    thread.start()
    stated = run(NUM_SUPERBATCHES, CACHE_BYTES)
    stop.set()
    thread.join()
    print(json.dumps({"grown_bytes": peak[0] - before, "stated_bytes": stated}))


if __name__ == "__main__":
    main()
