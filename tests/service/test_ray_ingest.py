"""`hopstream ingest --ray` as people run it: workers killed from outside, Ctrl-C, several machines."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from storage.ingest import IngestSettings, ingest
from tests.processes import hopstream, result_of, start, wait_until
from tests.storage.test_ingest import all_bytes

pytestmark = pytest.mark.soak
NUM_NODES, NUM_EDGES, DIM = 200_000, 3_000_000, 16


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables that two workers are busy with for some seconds, and the store that is made of them here."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(5)
    ids = pa.array([f"node-{number}" for number in rng.permutation(NUM_NODES)])
    features = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(NUM_NODES * DIM, dtype=np.float32)), DIM)
    pq.write_table(pa.table({"id": ids, "features": features}), folder / "nodes.parquet", row_group_size=20_000)
    ends = [ids.take(pa.array(rng.integers(0, NUM_NODES, NUM_EDGES))) for _ in range(2)]
    edges = pa.table({"src": ends[0], "dst": ends[1], "weight": rng.random(NUM_EDGES)})
    pq.write_table(edges, folder / "edges.parquet", row_group_size=200_000)
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / "edges.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "expected"))
    return folder


def words(tables: Path, out: Path, *more: str) -> list[str]:
    """The command that makes the expected store at `out`."""
    named = ["ingest", "--nodes", f"{tables}/nodes.parquet", "--edges", f"{tables}/edges.parquet", "--undirected"]
    return [*named, "--out", str(out), "--ray", "--memory", "2GiB", *more]


def at_work(process: int) -> list[psutil.Process]:
    """Ray workers below a process that do a task now."""
    found = []
    for child in psutil.Process(process).children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            if child.cmdline()[0].startswith("ray::_do"):
                found.append(child)
    return found


def test_workers_killed_from_outside_change_no_byte_and_the_result_is_json_alone(tables: Path, tmp_path: Path) -> None:
    process = start(*words(tables, tmp_path / "store", "--workers", "2", "--json"))
    for _ in range(3):
        wait_until(lambda: bool(at_work(process.pid)), process=process)
        for worker in at_work(process.pid)[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                worker.wait()
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert json.loads(out)["node_types"][0]["num_nodes"] == NUM_NODES
    assert all_bytes(tmp_path / "store") == all_bytes(tables / "expected")


def test_ctrl_c_leaves_no_worker_behind_and_the_same_command_goes_on(tables: Path, tmp_path: Path) -> None:
    process = start(*words(tables, tmp_path / "store", "--workers", "2"))
    done = tmp_path / "store" / "ingest.unfinished" / "stages" / "ids.node.done.json"
    wait_until(lambda: done.exists() and bool(at_work(process.pid)), process=process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("error: interrupted")
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    again = hopstream(*words(tables, tmp_path / "store", "--workers", "2"))
    assert again.returncode == 0, again.stderr
    assert re.search(r"^map ids +0 nodes", again.stderr, flags=re.MULTILINE), again.stderr
    assert all_bytes(tmp_path / "store") == all_bytes(tables / "expected")


@pytest.fixture(scope="module")
def two_machines() -> Iterator[str]:
    """A cluster of two nodes of one CPU each; both are on this machine, but Ray does not know."""
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=200 << 20, include_dashboard=False)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_several_machines_need_a_folder_that_all_see_and_then_give_the_same_bytes(
    tables: Path, tmp_path: Path, two_machines: str
) -> None:
    refused = hopstream(*words(tables, tmp_path / "store", "--address", two_machines))
    assert refused.returncode == 2
    assert "error: --work: not given, and Ray has 2 machines" in refused.stderr
    # a path that means another folder in each process stands for a disk that is not shared
    (tmp_path / "own").mkdir()
    refused = hopstream(
        *words(tables, tmp_path / "store", "--address", two_machines, "--work", "/proc/self/cwd/own"), cwd=tmp_path
    )
    assert refused.returncode == 2
    assert "--work /proc/self/cwd/own: not seen from" in refused.stderr
    assert not list((tmp_path / "own").iterdir())
    assert not (tmp_path / "store").exists()
    made = result_of(*words(tables, tmp_path / "store", "--address", two_machines, "--work", str(tmp_path / "work")))
    assert made["node_types"][0]["num_nodes"] == NUM_NODES
    assert all_bytes(tmp_path / "store") == all_bytes(tables / "expected")
    assert not list((tmp_path / "work").iterdir())
