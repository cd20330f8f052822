"""Edges sampled a second: this sampler and DGL's in the same run, pair by pair.

    python -m tests.benchmarks.sampling [--small] [--json] [--save]

Both expand every known node at every hop (DGL's blocks), over the same generated power-law graph, from the same
seeds in memory. DGL runs with one thread by OMP_NUM_THREADS; its two-thread figure runs two threads of seeds.

The other sampling modes are measured after that, one thread each, on the same edges with weights and with times that
are spread evenly over every list, from seeds with uniform times; and how many distinct nodes labor's batches have for
each of uniform ones.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sampling.modes import SamplingMode
from sampling.neighbors import NeighborSampler
from storage.graph import RelationCSC, Topology
from storage.schema import Relation
from tests.benchmarks.record import arguments, report, say

FANOUTS = (15, 10, 5)
NUM_SEEDS = 1024
PAIRS = 7
MODE_REPEATS = 3
TIMES = 1 << 20
MODES = {
    "weighted": SamplingMode("weighted"),
    "temporal_uniform": SamplingMode("temporal-uniform"),
    "temporal_latest": SamplingMode("temporal-latest"),
    "labor": SamplingMode("labor"),
    "labor_dependency_64": SamplingMode("labor", batch_dependency=64),
    "ppr": SamplingMode("ppr"),
}
"""by the name of their figure"""


def power_law_graph(num_nodes: int, num_edges: int) -> Topology:
    """Pareto-1.2 weights at both ends of every edge."""
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(rng.pareto(1.2, num_nodes) + 1)
    cumulative /= cumulative[-1]
    target = np.searchsorted(cumulative, rng.random(num_edges)).astype(np.int64)
    source = np.searchsorted(cumulative, rng.random(num_edges)).astype(np.int64)
    order = np.argsort(target * num_nodes + source)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=num_nodes))])
    relation = RelationCSC(
        relation=Relation("node", "to", "node"),
        source_type=0,
        target_type=0,
        indptr=indptr.astype(np.int32),
        indices=source[order].astype(np.int32),
        out_degree=np.bincount(source, minlength=num_nodes).astype(np.int32),
        weight=None,
        timestamp=None,
    )
    return Topology(node_types=("node",), type_offsets=np.array([0, num_nodes], dtype=np.int64), relations=(relation,))


def dressed(graph: Topology) -> Topology:
    """The same edges with weights, and times from 0 to TIMES spread evenly over every list."""
    relation = graph.relations[0]
    num_edges = relation.indices.shape[0]
    degree = np.diff(relation.indptr).astype(np.int64)
    place = np.arange(num_edges, dtype=np.int64) - np.repeat(relation.indptr[:-1].astype(np.int64), degree)
    weight = np.random.default_rng(2).random(size=(num_edges,), dtype=np.float32)
    timestamp = place * TIMES // np.repeat(degree, degree)
    return replace(graph, relations=(replace(relation, weight=weight, timestamp=timestamp),))


def our_worker(graph: Topology) -> Callable[[NDArray[np.int64], int], int]:
    """A sampler of ours: (seeds, step) -> edges."""
    sampler = NeighborSampler(graph, fanouts=FANOUTS, seed=1)

    def work(seeds: NDArray[np.int64], step: int) -> int:
        sample = sampler.sample(seeds, epoch=0, step=step)
        return sum(hop.source.shape[0] for hop in sample.hops)

    return work


def measure_modes(graph: Topology, batches: list[NDArray[np.int64]]) -> dict[str, float]:
    """Edges a second of every other mode with one thread, and distinct nodes of labor's batches over uniform's."""
    times = np.random.default_rng(3).integers(0, TIMES, NUM_SEEDS)
    nodes: dict[str, int] = {}
    figures: dict[str, float] = {}
    for name, mode in {"uniform": SamplingMode(), **MODES}.items():
        sampler = NeighborSampler(graph, fanouts=FANOUTS, seed=1, mode=mode)
        given = times if mode.is_temporal else None
        sampler.sample(batches[0], epoch=0, step=1, times=given)  # compile and warm up
        measured = []
        for _ in range(MODE_REPEATS):
            began = time.perf_counter()
            samples = [
                sampler.sample(seeds, epoch=0, step=step, times=given) for step, seeds in enumerate(batches, start=1)
            ]
            edges = sum(hop.source.shape[0] for sample in samples for hop in sample.hops)
            measured.append(edges / (time.perf_counter() - began))
            nodes[name] = sum(sample.nodes.shape[0] for sample in samples)
        if name in MODES:
            figures[f"{name}_edges_per_second"] = statistics.median(measured)
    figures["labor_nodes_over_uniform"] = nodes["labor"] / nodes["uniform"]
    return figures


def dgl_worker(graph: Topology) -> Callable[[NDArray[np.int64], int], int]:
    """DGL's NeighborSampler over the same CSC: (seeds, step) -> edges."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl

    relation = graph.relations[0]
    whole = dgl.graph(
        (
            "csc",
            (
                torch.from_numpy(relation.indptr.astype(np.int64)),
                torch.from_numpy(relation.indices.astype(np.int64)),
                torch.empty(0, dtype=torch.int64),
            ),
        )
    ).formats("csc")
    sampler = dgl.dataloading.NeighborSampler(list(reversed(FANOUTS)))

    def work(seeds: NDArray[np.int64], step: int) -> int:
        _, _, blocks = sampler.sample_blocks(whole, torch.from_numpy(seeds))
        return sum(int(block.num_edges()) for block in blocks)

    return work


def rate(workers: list[Callable[[NDArray[np.int64], int], int]], batches: list[NDArray[np.int64]]) -> float:
    """Edges a second of `workers` in as many threads, each taking its share of the batches."""
    edges = [0] * len(workers)

    def run(number: int) -> None:
        for step in range(number, len(batches), len(workers)):
            edges[number] += workers[number](batches[step], step)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(workers))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(edges) / (time.perf_counter() - began)


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__ or "", small="200,000 nodes and 4 M edges").parse_args()
    num_nodes, num_edges, num_batches = (200_000, 4_000_000, 4) if options.small else (2_000_000, 40_000_000, 8)
    torch.set_num_threads(1)
    say("generating the graph", options)
    graph = power_law_graph(num_nodes, num_edges)
    rng = np.random.default_rng(1)
    batches = [rng.choice(num_nodes, NUM_SEEDS, replace=False) for _ in range(num_batches)]
    contenders: dict[str, Any] = {"hopstream": our_worker, "dgl": dgl_worker}
    rates: dict[str, list[float]] = {}
    ratios: dict[int, list[float]] = {}
    for num_threads in (1, 2):
        workers = {name: [make(graph) for _ in range(num_threads)] for name, make in contenders.items()}
        for name in contenders:
            rate(workers[name], batches[:num_threads])  # compile and warm up
        for number in range(PAIRS):
            for name in contenders:
                measured = rate(workers[name], batches)
                rates.setdefault(f"{name}_{num_threads}_thread_edges_per_second", []).append(measured)
            pair = [rates[f"{name}_{num_threads}_thread_edges_per_second"][-1] for name in contenders]
            ratios.setdefault(num_threads, []).append(pair[0] / pair[1])
            say(
                f"{num_threads} threads, pair {number}: {pair[0] / 1e6:.1f} and {pair[1] / 1e6:.1f} M edges/s",
                options,
            )
    figures = {name: statistics.median(values) for name, values in rates.items()}
    figures["ratio_to_dgl_1_thread"] = statistics.median(ratios[1])
    figures["ratio_to_dgl_2_thread"] = statistics.median(ratios[2])
    figures["thread_scaling_2"] = (
        figures["hopstream_2_thread_edges_per_second"] / figures["hopstream_1_thread_edges_per_second"]
    )
    say("the other modes", options)
    figures |= measure_modes(dressed(graph), batches)
    config = {
        "num_nodes": num_nodes,
        "num_edges": num_edges,
        "fanouts": list(FANOUTS),
        "num_seeds": NUM_SEEDS,
        "batches_per_measurement": num_batches,
        "pairs": PAIRS,
        "mode_repeats": MODE_REPEATS,
    }
    report("sampling", figures, config, options)


if __name__ == "__main__":
    main()
