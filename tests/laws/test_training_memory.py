"""Law: planning and training from a stream keep to the run file's memory.

The process tree's anonymous and shared pages are counted once each, as a memory cgroup counts them without page cache.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.benchmarks.capped import run_capped
from tests.benchmarks.community_graph import CommunityGraph

NUM_NODES, NUM_EDGES = 4_000_000, 20_000_000
MEMORY_BYTES = 850 << 20
"""features take 1,024 MB and the topology 96 MB, beside the program itself"""
NUM_STEPS = 60


def write_run(folder: Path, *, store: Path, topology: str) -> Path:
    document = {
        "run": {"name": topology, "storage": str(folder / "runs"), "seed": 1},
        "data": {"store": str(store)},
        "sampling": {"fanouts": [10, 5, 5], "seeds_per_step": 128},
        "encoder": {"name": "sage", "num_layers": 2, "hidden_dim": 64},
        "objective": {"name": "graphmae"},
        "training": {"epochs": 1, "max_steps": NUM_STEPS, "checkpoint_every_steps": 25},
        "tiers": {
            "memory_bytes": f"{MEMORY_BYTES >> 20}MiB",
            "topology": topology,
            "scratch_folder": str(folder / "scratch"),
        },
    }
    path = folder / f"{topology}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.soak
def test_training_keeps_to_its_memory_with_the_topology_in_memory_and_on_disk(tmp_path: Path) -> None:
    graph = CommunityGraph(tmp_path / "graph", num_nodes=NUM_NODES, num_edges=NUM_EDGES)
    graph.write()
    for topology in ("memory", "disk"):
        path = write_run(tmp_path, store=graph.store, topology=topology)
        for command in ("plan", "pretrain"):
            words = [sys.executable, "-m", "service", command, str(path), "--json"]
            done = run_capped(words, limit_bytes=3 * MEMORY_BYTES, disk=str(tmp_path))
            assert done.returncode == 0, done.output
            print(f"{command}, topology {topology}: peak {done.peak_bytes / (1 << 20):.0f} MiB, {done.seconds:.1f} s")
            assert done.peak_bytes <= MEMORY_BYTES
            if command == "plan":
                assert not json.loads(done.output)["in_memory"]
    shutil.rmtree(tmp_path / "graph")
