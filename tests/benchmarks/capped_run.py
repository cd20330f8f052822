"""A graph larger than memory pretrains from one run file under a cap, and takes as long as `hopstream plan` foresaw.

    python -m tests.benchmarks.capped_run [--small] [--data FOLDER] [--json] [--save]

The graph of `out_of_core` (20 M nodes, 300 M edges, 128 float16 features: 7 GB of store), graphmae with GraphSAGE-128,
256 seeds, fan-out 10,5,5, 200 steps, no Ray. `hopstream plan`, then `hopstream pretrain`, each a process of its own
under a memory cgroup of 1.5 GiB for everything, topology and page cache too, which is dropped before it starts.

| figure | what it is |
| plan_over_measured | seconds a step that `plan` predicted before the run, over those from the first batch on |
| peak_gib | anonymous and shared pages of the run at their most |
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.capped import run_capped
from tests.benchmarks.community_graph import CommunityGraph
from tests.benchmarks.record import arguments, report, say

GIB = 1 << 30
CAP_BYTES = GIB * 3 // 2


def write_run(folder: Path, *, store: Path, max_steps: int, tiers: dict[str, Any]) -> Path:
    """The run file."""
    document = {
        "run": {"name": "capped", "storage": str(folder / "runs"), "seed": 1},
        "data": {"store": str(store)},
        "sampling": {"fanouts": [10, 5, 5], "seeds_per_step": 256},
        "encoder": {"name": "sage", "num_layers": 2, "hidden_dim": 128},
        "objective": {"name": "graphmae"},
        "training": {"epochs": 1, "max_steps": max_steps},
        "tiers": {"memory_bytes": "1.5GiB", "scratch_folder": str(folder / "scratch"), **tiers},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def hopstream(words: list[str], *, disk: Path) -> tuple[Any, int]:
    """The JSON that a capped command prints, and its peak memory."""
    command = [sys.executable, "-m", "service", *words, "--json"]
    done = run_capped(command, limit_bytes=CAP_BYTES, disk=str(disk))
    if not done.capped:
        print("memory is not capped here: no cgroup could be made", file=sys.stderr)
    if done.returncode:
        sys.exit(f"hopstream {words[0]} ended with {done.returncode}: {done.output}")
    return json.loads(done.output), done.peak_bytes


def measure(graph: CommunityGraph, folder: Path, *, max_steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Plan, pretrain, and compare."""
    tiers = {"host_cache_bytes": "8MiB", "topology": "disk"} if options.small else {}  # or all would be in memory
    run = str(write_run(folder, store=graph.store, max_steps=max_steps, tiers=tiers))
    foreseen, plan_peak = hopstream(["plan", run], disk=folder)
    assert not foreseen["in_memory"]
    say(f"planned {foreseen['stage_seconds']}, bottleneck {foreseen['bottleneck']}", options)
    done, peak = hopstream(["pretrain", run], disk=folder)
    after, _ = hopstream(["plan", run], disk=folder)
    measured = after["happened"]["seconds_per_step"]
    say(f"trained {done}", options)
    return {
        "plan_over_measured": foreseen["seconds_per_step"] / measured,
        "planned_seconds_per_step": foreseen["seconds_per_step"],
        "measured_seconds_per_step": measured,
        **{f"planned_{name.replace(' ', '_')}_seconds": seconds for name, seconds in foreseen["stage_seconds"].items()},
        "planned_startup_seconds": foreseen["startup_seconds"],
        "measured_startup_seconds": done["summary"]["startup_seconds"],
        "peak_gib": peak / GIB,
        "plan_peak_gib": plan_peak / GIB,
    }


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="400 k nodes, 6 M edges, 40 steps")
    default = os.path.join(tempfile.gettempdir(), "hopstream-bench-out-of-core")
    parser.add_argument("--data", default=default, help=f"folder of `out_of_core`, kept; default {default}")
    options = parser.parse_args()
    size = (400_000, 6_000_000) if options.small else (20_000_000, 300_000_000)
    max_steps = 40 if options.small else 200
    data = Path(options.data) / "small" if options.small else Path(options.data)
    graph = CommunityGraph(data, num_nodes=size[0], num_edges=size[1])
    graph.write()
    with tempfile.TemporaryDirectory(dir=data, prefix="run-") as folder:
        figures = measure(graph, Path(folder), max_steps=max_steps, options=options)
    config = {"num_nodes": size[0], "num_edges": size[1], "cap_bytes": CAP_BYTES, "max_steps": max_steps}
    report("capped_run", figures, config, options)
    if options.small and options.data == default:
        shutil.rmtree(data)


if __name__ == "__main__":
    main()
