"""Ingest in a stated memory, under a memory cgroup, beside DuckDB's external sort.

    python -m tests.benchmarks.ingest [--small] [--scale] [--data FOLDER] [--json] [--save]

One power-law graph (Pareto-1.2 weights at both ends, ids shuffled), written once as Parquet. The page cache is dropped
before each run, the cap is the budget and 15 %, and all contenders have two threads.

- edges alone, in pairs: Parquet edges to edges sorted by (dst, src) in the given dense ids, fsync included: ours as
  the store's CSC, DuckDB's as Parquet.
- the whole command `hopstream ingest`: integer ids in shuffled rows, hotness order, 128 float16 features; the same
  without features; the same with string ids.
- `--scale`: the command without features from 1 M to 200 M edges, ten edges a node.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.capped import Done, run_capped
from tests.benchmarks.ingest_graph import FEATURE_DIM, write_edge_table, write_node_table, write_string_edges
from tests.benchmarks.record import arguments, report, say

NUM_WORKERS = 2
PAIRS = 5
OVER = 1.15
SCALES = (1_000_000, 5_000_000, 20_000_000, 50_000_000, 100_000_000, 200_000_000)


class Bench:
    """The tables of one size, and runs over them."""

    def __init__(self, options: argparse.Namespace, *, num_nodes: int, num_edges: int, memory_bytes: int) -> None:
        self.options = options
        self.num_nodes, self.num_edges, self.memory_bytes = num_nodes, num_edges, memory_bytes
        self.folder = Path(options.data) / f"{num_nodes}-{num_edges}"
        self.edges = self.folder / "edges.parquet"
        say(f"tables of {num_nodes:,} nodes and {num_edges:,} edges in {self.folder}", options)
        write_edge_table(self.edges, num_nodes=num_nodes, num_edges=num_edges)

    def contender(self, name: str) -> Done:
        """One run of a contender on the edges alone; its own seconds are in `output`."""
        with tempfile.TemporaryDirectory(dir=self.options.data) as out:
            words = [name, str(self.edges), str(self.num_nodes), f"{out}/out", str(self.memory_bytes), str(NUM_WORKERS)]
            done = run_capped(
                [sys.executable, "-m", "tests.benchmarks.ingest_contenders", *words],
                limit_bytes=int(self.memory_bytes * OVER),
                disk=self.options.data,
            )
        if done.returncode:
            sys.exit(f"{name} ended with {done.returncode}")
        return done

    def command(self, *, strings: bool, features: bool) -> tuple[Done, dict[str, Any]]:
        """One run of `hopstream ingest`, and the generation that it printed."""
        kind = ("string" if strings else "int") + ("-features" if features else "")
        nodes = self.folder / f"nodes-{kind}.parquet"
        write_node_table(nodes, num_nodes=self.num_nodes, strings=strings, features=features)
        edges = self.edges
        if strings:
            edges = self.folder / "edges-string.parquet"
            write_string_edges(edges, self.edges)
        with tempfile.TemporaryDirectory(dir=self.options.data) as out:
            words = ["--nodes", str(nodes), "--edges", str(edges), "--out", f"{out}/store", "--json"]
            words += ["--memory", str(self.memory_bytes), "--workers", str(NUM_WORKERS)]
            done = run_capped(
                [sys.executable, "-m", "service", "ingest", *words],
                limit_bytes=int(self.memory_bytes * OVER),
                disk=self.options.data,
            )
        if done.returncode:
            sys.exit(f"hopstream ingest ended with {done.returncode}: {done.output}")
        say(
            f"{kind}: {done.seconds:.1f} s, peak {done.peak_bytes / 2**20:.0f} MiB, temporary files "
            f"{done.peak_disk_bytes / 2**20:.0f} MiB at most with the store",
            self.options,
        )
        return done, json.loads(done.output)


def pairs(bench: Bench, num_pairs: int) -> dict[str, float]:
    """Figures of ours and DuckDB on the edges alone, in turns."""
    seconds: dict[str, list[float]] = {"hopstream": [], "duckdb": []}
    ratios = []
    for number in range(num_pairs):
        for name in ("hopstream", "duckdb"):
            seconds[name].append(float(bench.contender(name).output.splitlines()[-1]))
        ratios.append(seconds["duckdb"][-1] / seconds["hopstream"][-1])
        say(
            f"pair {number}: hopstream {seconds['hopstream'][-1]:.1f} s, DuckDB {seconds['duckdb'][-1]:.1f} s",
            bench.options,
        )
    return {
        "ratio_to_duckdb": statistics.median(ratios),
        "edges_only_seconds": statistics.median(seconds["hopstream"]),
        "duckdb_seconds": statistics.median(seconds["duckdb"]),
    }


def whole_command(bench: Bench) -> dict[str, float]:
    """Figures of `hopstream ingest` with features, without, and with string ids."""
    figures: dict[str, float] = {}
    done, generation = bench.command(strings=False, features=True)
    feature_bytes = bench.num_nodes * FEATURE_DIM * 2
    figures["peak_rss_over_budget"] = done.peak_bytes / bench.memory_bytes
    figures["seconds"] = done.seconds
    figures["edges_per_second"] = bench.num_edges / done.seconds
    figures["mb_per_second"] = (feature_bytes + 16 * bench.num_edges) / done.seconds / 1e6
    figures["disk_peak_bytes"] = done.peak_disk_bytes
    figures |= {f"seconds_{name.replace(' ', '_')}": s for name, s in generation["report"]["seconds"].items()}
    done, _ = bench.command(strings=False, features=False)
    figures |= {"int_ids_seconds": done.seconds, "int_ids_peak_over_budget": done.peak_bytes / bench.memory_bytes}
    done, _ = bench.command(strings=True, features=False)
    figures |= {"string_ids_seconds": done.seconds, "string_ids_peak_over_budget": done.peak_bytes / bench.memory_bytes}
    return figures


def scale(options: argparse.Namespace, *, memory_bytes: int) -> dict[str, float]:
    """Seconds of the command by number of edges, and how the cost of an edge grows."""
    figures: dict[str, float] = {}
    costs = {}
    for num_edges in SCALES:
        bench = Bench(options, num_nodes=num_edges // 10, num_edges=num_edges, memory_bytes=memory_bytes)
        done, _ = bench.command(strings=False, features=False)
        figures[f"scale_{num_edges // 1_000_000}m_seconds"] = done.seconds
        figures[f"scale_{num_edges // 1_000_000}m_peak_over_budget"] = done.peak_bytes / memory_bytes
        costs[num_edges] = done.seconds / num_edges
    figures["cost_growth_over_linear"] = max(
        costs[more] / costs[fewer] for fewer in SCALES for more in SCALES if fewer < more
    )
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="1 M nodes and 10 M edges in 512 MiB, one pair")
    parser.add_argument("--scale", action="store_true", help="also from 1 M to 200 M edges")
    default = os.path.join(tempfile.gettempdir(), "hopstream-bench-ingest")
    parser.add_argument("--data", default=default, help=f"folder for tables and stores, 12 GB; default {default}")
    options = parser.parse_args()
    os.makedirs(options.data, exist_ok=True)
    size = (1_000_000, 10_000_000, 512 << 20) if options.small else (10_000_000, 100_000_000, 2 << 30)
    bench = Bench(options, num_nodes=size[0], num_edges=size[1], memory_bytes=size[2])
    figures = pairs(bench, 1 if options.small else PAIRS)
    figures |= whole_command(bench)
    if options.scale:
        figures |= scale(options, memory_bytes=size[2])
    config = {
        "num_nodes": size[0],
        "num_edges": size[1],
        "feature_dim": FEATURE_DIM,
        "memory_bytes": size[2],
        "cap_bytes": int(size[2] * OVER),
        "workers": NUM_WORKERS,
        "pairs": 1 if options.small else PAIRS,
    }
    report("ingest", figures, config, options)
    if options.small:
        shutil.rmtree(options.data)


if __name__ == "__main__":
    main()
