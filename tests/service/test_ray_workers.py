"""Several workers under Ray Train: the losses of one worker, and resuming with another number of them."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from service.ray_workers import coordinator_name
from service.run_file import load_run_file
from storage.ingest import IngestSettings, ingest
from tests.data import ROOT, real_graph, small_run, small_store
from tests.processes import hopstream, result_of, start, wait_until


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.soak
def test_two_workers_train_as_one_does_and_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    small_store(tmp_path)
    alone = result_of("pretrain", str(small_run(tmp_path, name="alone")))
    both = small_run(tmp_path, name="both")
    first = result_of("pretrain", str(both), "--workers", "2")
    assert (first["state"], first["world_size"], first["step"]) == ("finished", 2, alone["step"])
    assert first["summary"]["seeds"] == alone["summary"]["seeds"]
    assert np.allclose(losses(tmp_path, "both"), losses(tmp_path, "alone"), rtol=1e-4, atol=0)

    # take the last checkpoints away: the run goes on from the middle of an epoch, with one worker
    checkpoints = tmp_path / "runs" / "both" / "checkpoints"
    max(checkpoints.iterdir()).joinpath("manifest.json").unlink()
    again = result_of("pretrain", str(both), "--workers", "1")
    assert (again["state"], again["world_size"], again["attempts"]) == ("finished", 1, 2)
    assert again["summary"]["steps"] == 2
    assert np.allclose(losses(tmp_path, "both"), losses(tmp_path, "alone"), rtol=1e-4, atol=0)


def test_bad_input_under_ray_is_one_line_too(tmp_path: Path) -> None:
    small_store(tmp_path)
    refused = hopstream("pretrain", str(small_run(tmp_path)), "sampling.fanouts=[3]", "--workers", "2")
    assert refused.returncode == 2
    assert "need 3" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_runs_of_one_name_in_two_places_have_coordinators_of_their_own(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    here = load_run_file(str(run))
    there = load_run_file(str(run), overrides=[f"run.storage={tmp_path}/elsewhere"])
    assert coordinator_name(here) == coordinator_name(load_run_file(str(run), overrides=["workers.count=2"]))
    assert coordinator_name(here) != coordinator_name(there)


@pytest.mark.soak
def test_a_run_whose_coordinator_is_killed_says_so_in_one_line_and_goes_on_when_started_again(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"epochs": 100, "checkpoint_every_steps": 20})
    process = start("pretrain", str(run), "--workers", "2")
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("*/manifest.json")), process=process)
    (coordinator,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RunCoordinator" in child.cmdline()[0]
    ]
    coordinator.kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in error
    assert "the run's coordinator is gone" in error
    assert json.loads((tmp_path / "runs" / "small" / "state.json").read_text())["state"] == "failed"
    assert not (tmp_path / "runs" / "small" / "lease.json").exists()
    again = result_of("pretrain", str(run))
    assert (again["state"], again["step"], again["attempts"]) == ("finished", 500, 2)


@pytest.mark.soak
def test_ego_twitter_has_the_same_loss_with_one_and_two_workers_and_embeds_every_node(tmp_path: Path) -> None:
    tables = real_graph("ego_twitter")
    settings = IngestSettings(
        nodes={"node": str(tables / "nodes.parquet")}, edges={"node:to:node": str(tables / "edges.parquet")}
    )
    ingest(settings, out=str(tmp_path / "store"))
    recipe = str(ROOT / "service" / "recipes" / "ego_twitter_graphmae.yaml")
    common = [recipe, f"data.store={tmp_path}/store", f"run.storage={tmp_path}/runs", "training.epochs=1"]
    for workers in ("1", "2"):
        status = result_of("pretrain", *common, f"run.name=w{workers}", "--workers", workers)
        assert (status["state"], status["step"]) == ("finished", 80)
    one, two = losses(tmp_path, "w1"), losses(tmp_path, "w2")
    assert len(one) == len(two) == 80
    assert np.abs(np.array(one[:20]) - np.array(two[:20])).max() <= 1e-4
    embedded = result_of("embed", *common, "run.name=w1")
    ids = pq.read_table(Path(embedded["out"]) / "node")["id"].to_numpy()
    assert ids.shape == (81_306,)
    assert np.array_equal(np.sort(ids), np.sort(pq.read_table(tables / "nodes.parquet")["id"].to_numpy()))


@pytest.mark.soak
def test_ctrl_c_under_ray_ends_cleanly_and_leaves_no_worker_behind(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"epochs": 10_000})
    process = start("pretrain", str(run), "--workers", "2")
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("*/manifest.json")), process=process)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in error
    assert json.loads((tmp_path / "runs" / "small" / "state.json").read_text())["state"] == "interrupted"
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
