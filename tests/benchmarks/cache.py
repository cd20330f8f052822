"""Hit rates of caches on one recorded trace: LRU, LFU, SIEVE, fixed sets of rows, the stream's plan, and the best.

    python -m tests.benchmarks.cache [--small] [--data FOLDER] [--json] [--save]

The trace: the rows, hottest first in the table, of the sampled batches of five superbatches of 64. With `--data`, of
the graph that `tests.benchmarks.out_of_core --data` wrote there, 1024 seeds a batch; else of a generated one with
Pareto-1.2 weights at both ends of its edges, and as many seeds for its nodes. Fan-out 15,10,5.

A hit rate is hits over rows needed, in the superbatches after the first, in which the caches fill. All start empty, and
the fixed sets have a row from its first use on; so Belady's rule with the whole trace known is above all the others.

| figure of a cache of P % of the rows | what it is |
| P_percent_lru, lfu, sieve | hit rates, see `cache_policies.py` |
| P_percent_most_used | of the rows that most batches of the trace need, which nobody knows beforehand |
| P_percent_hottest | of the first rows of the table |
| P_percent_belady | of brute force over the whole trace |
| P_percent_plan | of `sampling.belady`, the whole trace known, nothing static |
| P_percent_stream | of `sampling.belady` as the stream uses it: superbatches of 64, the next known, a static prefix |
| P_percent_points_horizon_K | plan - Belady, superbatches of K, the next one known, nothing static |
| P_percent_points_static_S | plan - Belady, the whole trace known, S % of the cache a static prefix |
| P_percent_points_stream | stream - Belady |
| P_percent_gap_closed | (stream - SIEVE) / (Belady - SIEVE) |

`plan_minus_belady_points` is the lowest of plan - Belady over the sizes, in percentage points.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Residency
from sampling.memory_split import STATIC_SHARE
from sampling.neighbors import NeighborSampler
from sampling.seeds import SeedOrder
from storage.graph import Topology
from storage.store import Store
from tests.benchmarks.cache_policies import (
    ONLINE,
    Trace,
    belady_hits,
    fixed_hits,
    most_used,
    next_uses,
    online_hits,
)
from tests.benchmarks.record import arguments, report, say
from tests.benchmarks.sampling import power_law_graph

FANOUTS = (15, 10, 5)
NODES_PER_SEED = 20_000_000 / 1024
PERCENTS = (1, 5, 10, 25)
HORIZONS = (16, 32, 64)
STATIC_SHARES = (0.5, STATIC_SHARE)
SUPERBATCH = 64
NUM_SUPERBATCHES = 5
NUM_WARMUP = SUPERBATCH
NUM_THREADS = 2

Hits = NDArray[np.int64]
"""[K] of each batch"""


def hottest_first(graph: Topology) -> NDArray[np.int32]:
    """Place [num_nodes] of each node in the order that `hopstream ingest` gives it: by expected accesses."""
    relation = graph.relations[0]
    degree = np.diff(relation.indptr)
    reached = np.ones(degree.shape[0])
    hotness = reached.copy()
    for fanout in FANOUTS:
        share = reached * np.minimum(1, fanout / np.maximum(degree, 1))
        reached = np.bincount(relation.indices, weights=np.repeat(share, degree), minlength=degree.shape[0])
        hotness += reached
    place = np.empty(degree.shape[0], dtype=np.int32)
    place[np.argsort(-hotness, kind="stable")] = np.arange(degree.shape[0], dtype=np.int32)
    return place


def record_trace(graph: Topology, place: NDArray[np.int32] | None, num_seeds: int) -> list[NDArray[np.int32]]:
    """The rows of each batch, in the order of the batch; `place` is each node's row, where it is not the node's id."""
    order = SeedOrder(None, num_nodes=int(graph.type_offsets[-1]), seeds_per_step=num_seeds, seed=0)
    trace: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)] * (NUM_SUPERBATCHES * SUPERBATCH)

    def draw(thread: int) -> None:
        sampler = NeighborSampler(graph, fanouts=FANOUTS, seed=0)
        for run_step in range(thread, len(trace), NUM_THREADS):
            epoch, step = divmod(run_step, order.steps_per_epoch)
            nodes = sampler.sample(order.global_batch(epoch=epoch, step=step), epoch=epoch, step=step).nodes
            trace[run_step] = nodes.astype(np.int32) if place is None else place[nodes]

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(draw, range(NUM_THREADS)))
    return trace


def recorded(options: argparse.Namespace) -> tuple[list[NDArray[np.int32]], dict[str, Any]]:
    """The trace, and what it is of."""
    if options.data:
        store_folder = os.path.join(options.data, "small" if options.small else "", "store")
        if not os.path.exists(store_folder):
            sys.exit(f"no store in {store_folder}; tests.benchmarks.out_of_core --data {options.data} writes it")
        say(f"reading the topology in {store_folder}", options)
        graph, place = Store.open(store_folder).topology(), None
    else:
        num_nodes, num_edges = (200_000, 4_000_000) if options.small else (2_000_000, 40_000_000)
        say("generating the graph", options)
        graph = power_law_graph(num_nodes, num_edges)
        place = hottest_first(graph)
    num_nodes = int(graph.type_offsets[-1])
    num_seeds = max(8, round(num_nodes / NODES_PER_SEED))
    say("sampling", options)
    trace = record_trace(graph, place, num_seeds)
    return trace, {
        "graph": "community" if options.data else "power law",
        "num_nodes": num_nodes,
        "num_edges": int(graph.relations[0].indices.shape[0]),
        "num_seeds": num_seeds,
    }


def plan_hits(trace: Trace, *, num_rows: int, num_static: int, num_slots: int, horizon: int) -> Hits:
    """Of the stream's plan in superbatches of `horizon` batches, with a static prefix beside the slots."""
    hits = fixed_hits(trace, is_kept=np.arange(num_rows) < num_static)
    residency = Residency(num_rows=num_rows, num_slots=num_slots)
    cold = [rows[rows >= num_static] for rows in trace]
    parts = [cold[first : first + horizon] for first in range(0, len(cold), horizon)]
    del cold
    number = 0
    for part, ahead in zip(parts, [*parts[1:], None], strict=True):
        for plan in residency.plan(list(part), ahead):
            hits[number] += plan.num_hits
            number += 1
    return hits


class Bench:
    """One trace and all the caches of one size after another."""

    def __init__(self, options: argparse.Namespace, trace: Trace, num_rows: int) -> None:
        self._options = options
        self._trace = trace
        self._num_rows = num_rows
        self._requests = sum(rows.shape[0] for rows in trace[NUM_WARMUP:])
        say("looking up the next use of every access", options)
        self._following = next_uses(trace)

    def rates(self, num_slots: int) -> dict[str, float]:
        """Hit rates of every cache with `num_slots` rows."""
        trace, num_rows, whole = self._trace, self._num_rows, len(self._trace)
        size: dict[str, int] = {"num_rows": num_rows, "num_slots": num_slots}
        jobs: dict[str, Callable[[], Hits]] = {
            "belady": partial(belady_hits, trace, self._following, **size),
            **{policy: partial(online_hits, policy, trace, **size) for policy in ONLINE},
            "most_used": lambda: fixed_hits(trace, is_kept=most_used(trace, **size)),
            "hottest": lambda: fixed_hits(trace, is_kept=np.arange(num_rows) < num_slots),
            "plan": partial(self._plan, num_slots, share=0.0, horizon=whole),
            **{f"horizon_{k}": partial(self._plan, num_slots, share=0.0, horizon=k) for k in HORIZONS},
            **{f"static_{s:.0%}"[:-1]: partial(self._plan, num_slots, share=s, horizon=whole) for s in STATIC_SHARES},
            "stream": partial(self._plan, num_slots, share=STATIC_SHARE, horizon=SUPERBATCH),
        }
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            found = threads.map(lambda name: self._rate(name, num_slots, jobs[name]), jobs)
            return dict(zip(jobs, found, strict=True))

    def _plan(self, num_slots: int, *, share: float, horizon: int) -> Hits:
        num_static = int(share * num_slots)
        return plan_hits(
            self._trace,
            num_rows=self._num_rows,
            num_static=num_static,
            num_slots=num_slots - num_static,
            horizon=horizon,
        )

    def _rate(self, name: str, num_slots: int, job: Callable[[], Hits]) -> float:
        began = time.perf_counter()
        rate = float(job()[NUM_WARMUP:].sum() / self._requests)
        say(f"{num_slots:,} rows: {name} {rate:.2%} in {time.perf_counter() - began:.1f} s", self._options)
        return rate


def figures_of(rates: dict[int, dict[str, float]]) -> dict[str, float]:
    """Rates as they are where they are of interest themselves, else as what they cost."""
    figures = {"plan_minus_belady_points": min(100 * (of["plan"] - of["belady"]) for of in rates.values())}
    for percent, of in rates.items():
        for name, rate in of.items():
            if name.startswith(("horizon", "static", "stream")):
                figures[f"{percent}_percent_points_{name}"] = 100 * (rate - of["belady"])
            if not name.startswith(("horizon", "static")):
                figures[f"{percent}_percent_{name}"] = rate
        figures[f"{percent}_percent_gap_closed"] = (of["stream"] - of["sieve"]) / (of["belady"] - of["sieve"])
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="200,000 nodes and 4 M edges; with --data its small graph")
    parser.add_argument("--data", default=None, help="folder that tests.benchmarks.out_of_core has filled")
    options = parser.parse_args()
    trace, config = recorded(options)
    num_rows = config["num_nodes"]
    bench = Bench(options, trace, num_rows)
    rates = {percent: bench.rates(num_rows * percent // 100) for percent in PERCENTS}
    config |= {
        "fanouts": list(FANOUTS),
        "batches": len(trace),
        "warmup_batches": NUM_WARMUP,
        "accesses": sum(rows.shape[0] for rows in trace),
        "distinct_rows": int(np.unique(np.concatenate(trace)).shape[0]),
        "batches_per_superbatch": SUPERBATCH,
        "static_share": STATIC_SHARE,
    }
    report("cache", figures_of(rates), config, options)


if __name__ == "__main__":
    main()
