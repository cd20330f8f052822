"""Several ranks of one host under Ray Train share a feeder: the batches of the plain loader, and clear errors."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer

from sampling.loader import Loader
from service.feeding import OwnLoader, open_loader
from service.group import Group
from service.ray_cluster import ray_cluster
from service.run_file import RunFile, load_run_file
from service.seed_nodes import seed_order
from storage.store import Store
from tests.data import small_run, small_store
from tests.sampling.fed_processes import digest
from tests.service.feeding_workers import open_stream, work

STEPS = 12
# Ray Train imports Ray Data, whose settings announce their own deprecation
pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(num_cpus=2, object_store_bytes=100 << 20):
        yield


def run_of(folder: Path, *overrides: str) -> RunFile:
    small_store(folder)
    return load_run_file(str(small_run(folder)), overrides=overrides)


def train(run: RunFile, folder: Path, *, steps: int = STEPS, work_seconds: float = 0.0) -> list[dict[str, Any]]:
    """What each of two workers saw."""
    TorchTrainer(
        work,
        train_loop_config={
            "run": run.model_dump(mode="json"),
            "folder": str(folder),
            "steps": steps,
            "work_seconds": work_seconds,
        },
        torch_config=TorchConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="ray", storage_path=str(folder / "ray")),
    ).fit()
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def feeders() -> list[psutil.Process]:
    """Actors of this cluster that feed."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "FeederActor" in "".join(process.cmdline()[:1]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def expected(run: RunFile, *, rank: int, world_size: int) -> list[str]:
    """Of the plain loader."""
    store = Store.open(run.data.store)
    loader = Loader(
        store.topology(),
        order=seed_order(store, run),
        fanouts=run.sampling.fanouts,
        seed=run.run.seed,
        features=[store.features(kind.name) for kind in store.node_types],
        rank=rank,
        world_size=world_size,
    )
    try:
        return [digest(batch) for batch in loader.batches(first_step=0, last_step=STEPS)]
    finally:
        loader.close()


@pytest.mark.usefixtures("cluster")
def test_two_workers_of_one_machine_share_a_feeder_which_ends_with_them(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    seen = train(run, tmp_path)
    for rank, found in enumerate(seen):
        assert "error" not in found
        assert found["loader"] == "HostLoader"
        assert found["batches"] == expected(run, rank=rank, world_size=2)
    # both were told what was done for both
    assert seen[0]["requests"] == seen[1]["requests"]
    assert seen[0]["sampled_nodes"] == seen[1]["sampled_nodes"] == sum(seen[0]["requests"])
    assert 0 < seen[0]["rows_read"][0] < seen[0]["requests"][0]
    deadline = time.monotonic() + 60
    while feeders():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("cluster")
def test_every_worker_is_told_that_the_stream_cannot_be_opened(tmp_path: Path) -> None:
    seen = train(run_of(tmp_path, "tiers.host_cache_bytes=0"), tmp_path)
    assert [found["error"] for found in seen] == ["BadInput", "BadInput"]
    assert all("no memory" in found["text"] for found in seen)


@pytest.mark.usefixtures("cluster")
def test_a_killed_feeder_stops_every_worker_with_one_line(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    seen: list[dict[str, Any]] = []
    training = Thread(target=lambda: seen.extend(train(run, tmp_path, steps=100_000, work_seconds=0.01)))
    training.start()
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("*.begun"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (feeder,) = feeders()
    feeder.kill()
    training.join(200)
    assert [found["error"] for found in seen] == ["TrainingFailed", "TrainingFailed"]
    assert all("the feeder of this host has ended" in found["text"] for found in seen)


def test_a_rank_alone_on_its_host_has_a_stream_of_its_own(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    store = Store.open(run.data.store)
    with ExitStack() as opened:
        loader = open_loader(
            store,
            run,
            order=seed_order(store, run),
            group=Group(),
            ranks=[0],
            device=torch.device("cpu"),
            open_stream=open_stream,
            opened=opened,
        )
        assert isinstance(loader, OwnLoader)
        seen = [digest(batch) for batch in loader.batches(first_step=0, last_step=STEPS)]
        assert seen == expected(run, rank=0, world_size=1)
        assert [None if table is None else table.requests for table in loader.tables] == [loader.counters.sampled_nodes]
        assert loader.read[0] is not None
        loader.close()
