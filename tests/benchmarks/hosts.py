"""Bytes that two ranks of one host have read from its disk, over those of one rank that gets the same global batches.

    python -m tests.benchmarks.hosts [--small] [--json] [--save] [--data FOLDER]

A generated graph (`community_graph.py`) of 1 M nodes and 15 M edges with 128 float16 features, an eighth of which are
cached; fan-out 10,5, 1024 seeds a global batch, 120 steps. Every rank and every feeder is a process of its own
(`hosts_processes.py`). Three hosts one after another:

| host | feeders | ranks of each | cache of each |
| 1 rank | 1 | 1 | an eighth |
| 2 ranks | 1 | 2 | an eighth |
| 2 streams | 2 | 1 | a sixteenth |

Bytes are the kernel's own for the feeder (/proc/self/io), from when its stream was open: reads of the feature file
and of packs. `table_bytes_2_ranks_over_1` is of the feature file alone, by its own counters. `rows_2_ranks_over_1`
says how many more rows were served for that: those that both ranks have in their batches are served twice.
"""

import os
import shutil
import tempfile
from pathlib import Path

from tests.benchmarks.community_graph import FEATURE_DIM, CommunityGraph
from tests.benchmarks.hosts_processes import BATCHES_PER_SUPERBATCH, FANOUTS, FeederSpec, Outcome, run_host
from tests.benchmarks.record import arguments, report, say

CACHED_SHARE = 8


def figures_of(alone: Outcome, both: Outcome, apart: Outcome) -> dict[str, float]:
    """Bytes, rows and seconds of the three hosts, and the ratios that matter."""
    figures = {
        "disk_bytes_2_ranks_over_1": both.total("disk_bytes") / max(1, alone.total("disk_bytes")),
        "table_bytes_2_ranks_over_1": both.total("table_bytes") / alone.total("table_bytes"),
        "disk_bytes_2_streams_over_1": apart.total("disk_bytes") / max(1, alone.total("disk_bytes")),
        "rows_2_ranks_over_1": both.total("rows") / alone.total("rows"),
    }
    for name, host in (("1_rank", alone), ("2_ranks", both), ("2_streams", apart)):
        figures[f"disk_mb_{name}"] = host.total("disk_bytes") / 1e6
        figures[f"table_mb_{name}"] = host.total("table_bytes") / 1e6
        figures[f"misses_{name}"] = host.total("misses")
        figures[f"seconds_{name}"] = max(rank["seconds"] for rank in host.ranks)
        figures[f"shared_mb_{name}"] = host.total("shared_bytes") / 1e6
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="100 k nodes, 1.5 M edges, 128 seeds, 56 steps")
    default = os.path.join(tempfile.gettempdir(), "hopstream-bench-hosts")
    parser.add_argument("--data", default=default, help=f"folder for tables and store, kept; default {default}")
    options = parser.parse_args()
    num_nodes, num_edges, seeds, steps = (
        (100_000, 1_500_000, 128, 56) if options.small else (1_000_000, 15_000_000, 1024, 120)
    )
    folder = Path(options.data) / "small" if options.small else Path(options.data)
    say(f"graph of {num_nodes:,} nodes and {num_edges:,} edges in {folder}", options)
    CommunityGraph(folder, num_nodes=num_nodes, num_edges=num_edges).write()
    (folder / "scratch").mkdir(exist_ok=True)
    cache_bytes = num_nodes * FEATURE_DIM * 2 // CACHED_SHARE

    def feeder(*ranks: int, world_size: int, share: int = 1) -> FeederSpec:
        return FeederSpec(str(folder), ranks, world_size, seeds, cache_bytes // share)

    hosts = {
        "1 rank": [feeder(0, world_size=1)],
        "2 ranks": [feeder(0, 1, world_size=2)],
        "2 streams": [feeder(0, world_size=2, share=2), feeder(1, world_size=2, share=2)],
    }
    outcomes = {}
    for name, specs in hosts.items():
        outcomes[name] = found = run_host(specs, steps=steps)
        say(f"{name}: {found.total('disk_bytes') / 1e6:,.1f} MB for {found.total('rows'):,} rows", options)
    checksums = {(found.total("seeds"), found.total("checksum")) for found in outcomes.values()}
    assert len(checksums) == 1, f"hosts were given different features: {checksums}"
    config = {
        "num_nodes": num_nodes,
        "num_edges": num_edges,
        "feature_dim": FEATURE_DIM,
        "feature_bytes": num_nodes * FEATURE_DIM * 2,
        "cache_bytes": cache_bytes,
        "fanouts": FANOUTS,
        "seeds_per_step": seeds,
        "steps": steps,
        "batches_per_superbatch": BATCHES_PER_SUPERBATCH,
    }
    report("hosts", figures_of(*outcomes.values()), config, options)
    if options.small and options.data == default:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
