"""A pool of Ray actors as the source of samples: the batches of the plain loader, also when actors are killed."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from numpy.typing import NDArray

from sampling.batch import MiniBatch
from sampling.channel import ChannelClosed
from sampling.drawn import Drawn
from sampling.kept import Shelf
from sampling.loader import Loader
from sampling.modes import UNIFORM, ModeName, SamplingMode
from sampling.planned_table import PlannedTable
from sampling.sample_space import SampleSpace
from sampling.seeds import SeedOrder
from sampling.stream import Stream
from service.errors import TrainingFailed
from service.ray_cluster import ray_cluster
from service.sampler_pool import IN_FLIGHT, ActorSource, PoolActor
from storage.errors import BadInput
from storage.graph import Topology
from storage.read_pool import ReadPool
from storage.store import Store
from tests.laws.test_order import assert_same
from tests.laws.test_stream import FANOUTS, LAST, NUM_NODES, SPEED, order_of, plain, tables
from tests.sampling.graphs import dressed, two_type_graph
from tests.sampling.stored_graphs import store_of

pytestmark = pytest.mark.soak
"""real clusters and processes, minutes together"""

WAIT_SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(num_cpus=3, object_store_bytes=100 << 20):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(two_type_graph(), str(tmp_path / "store"))


@contextmanager
def pool_of(
    store: Store,
    num_actors: int,
    *,
    order: SeedOrder | None = None,
    mode: SamplingMode = UNIFORM,
    ranks: Sequence[int] = (0,),
    world_size: int = 1,
    cpus_per_actor: float = 1.0,
    patience_seconds: float = WAIT_SECONDS,
) -> Iterator[ActorSource]:
    pool = ActorSource(
        store,
        fanouts=FANOUTS,
        seed=4,
        order=order or order_of(),
        num_actors=num_actors,
        mode=mode,
        ranks=ranks,
        world_size=world_size,
        cpus_per_actor=cpus_per_actor,
        patience_seconds=patience_seconds,
    )
    try:
        yield pool
    finally:
        pool.close()


def stream_over(pool: ActorSource, store: Store, folder: Path, *, ranks: Sequence[int], world_size: int) -> Stream:
    """A stream over the array tables of `tests.laws.test_stream`, whose samples wait on disk in part."""
    space = SampleSpace(memory_bytes=3000, folder=str(folder), bundle_bytes=2000)
    reads = ReadPool(num_threads=1)
    planned = [
        PlannedTable(
            table,
            num_static=10,
            num_slots=20,
            landing_bytes=5000 * table.dim * table.dtype.itemsize,
            chunk_bytes=1 << 16,
            folder=str(folder),
            speed=SPEED,
            pool=reads,
            space=space,
            packing="never",
        )
        for table in tables()
    ]
    return Stream(
        pool,
        type_offsets=store.type_offsets,
        order=order_of(),
        tables=planned,
        space=space,
        batches_per_superbatch=12,
        ranks=ranks,
    )


def check_batches(pool: ActorSource, store: Store, folder: Path, *, ranks: Sequence[int] = (0,), world: int = 1) -> int:
    """Compare a stream over the pool with the plain loader; nodes of all batches."""
    stream = stream_over(pool, store, folder, ranks=ranks, world_size=world)
    found = list(stream.batches(first_step=0, last_step=LAST))
    for place, rank in enumerate(ranks):
        expected = plain(two_type_graph(), tables(), rank=rank, world_size=world)
        assert len(found) == len(expected)
        for batches, theirs in zip(found, expected, strict=True):
            assert_same(batches[place], theirs)
    return sum(batch.node_id.shape[0] for batches in found for batch in batches)


def pid_of(actor: PoolActor) -> int:
    pid: int = ray.get(actor.handle.here.options(max_task_retries=-1).remote())
    return pid


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("world_size", "num_actors"),
    [
        (2, 3),
        pytest.param(1, 1),
        pytest.param(1, 3),
        pytest.param(2, 1),
        pytest.param(4, 1),
        pytest.param(4, 3),
    ],
)
def test_a_stream_over_actors_gives_the_batches_of_the_plain_loader(
    tmp_path: Path, store: Store, world_size: int, num_actors: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ranks = range(world_size)
    with pool_of(store, num_actors, ranks=ranks, world_size=world_size) as pool:
        num_nodes = check_batches(pool, store, scratch, ranks=ranks, world=world_size)
        counters = pool.counters
        assert (counters.steps, counters.nodes, counters.reissued_steps) == (LAST, num_nodes, 0)
        assert counters.edges > 0
        assert counters.actor_seconds > 0
        assert counters.wait_seconds > 0


@pytest.mark.parametrize("name", ["temporal-latest", *(pytest.param(mode) for mode in ("weighted", "labor", "ppr"))])
def test_every_mode_draws_the_same_from_actors_with_the_times_of_the_seeds(tmp_path: Path, name: ModeName) -> None:
    graph = dressed(two_type_graph())
    times = np.arange(NUM_NODES) % 37 if name == "temporal-latest" else None
    mode = SamplingMode(name, batch_dependency=4 if name == "labor" else 1, node_times=times)
    with pool_of(store_of(graph, str(tmp_path / "store")), 1, mode=mode) as pool:
        for drawn, batch in zip(pool.samples(0, LAST), batches_in_mode(graph, mode), strict=True):
            check_sample(drawn, batch, graph, is_timed=times is not None)


def check_sample(drawn: list[Drawn], batch: MiniBatch, graph: Topology, *, is_timed: bool = False) -> None:
    """Compare what a pool gave for one rank with a batch of the plain loader."""
    sample, around = drawn[0].keep(Shelf(SampleSpace(memory_bytes=0, folder=None))).take()
    assert torch.equal(torch.from_numpy(sample.nodes - graph.type_offsets[batch.node_type.numpy()]), batch.node_id)
    assert (sample.times is not None) == is_timed
    for degree, expected in zip(around.degrees(sample.nodes), (batch.in_degree, batch.out_degree), strict=True):
        assert torch.equal(torch.from_numpy(degree), expected)
    for number, (hop, other) in enumerate(zip(sample.hops, batch.hops, strict=True)):
        weight = around.edge_weights(number, hop)
        assert weight is not None
        assert other.weight is not None
        assert torch.equal(torch.from_numpy(weight), other.weight)
        for mine, theirs in ((hop.indptr, other.indptr), (hop.source, other.source), (hop.position, other.position)):
            assert torch.equal(torch.from_numpy(mine), theirs)


def batches_in_mode(graph: Topology, mode: SamplingMode) -> list[MiniBatch]:
    loader = Loader(graph, order=order_of(), fanouts=FANOUTS, seed=4, mode=mode, features=[None, None])
    try:
        return list(loader.batches(first_step=0, last_step=LAST))
    finally:
        loader.close()


class Counted(SeedOrder):
    """An order that notes which steps are asked of it; what asks is the pool alone."""

    asked: list[tuple[int, int]]

    def global_batch(self, *, epoch: int, step: int) -> NDArray[np.int64]:
        self.asked.append((epoch, step))
        return super().global_batch(epoch=epoch, step=step)


def counted() -> Counted:
    order = Counted(None, num_nodes=NUM_NODES, seeds_per_step=48, seed=4)
    object.__setattr__(order, "asked", [])
    return order


def test_killed_actors_change_no_batch_and_their_steps_are_asked_for_again(store: Store) -> None:
    """One by the system, which Ray starts anew; one by Ray for good; at the end all of them, which is an error."""
    with pool_of(store, 3) as pool:
        first, second, _ = pool.actors
        pids = [pid_of(actor) for actor in pool.actors]  # all of them take part
        graph = two_type_graph()
        samples = pool.samples(0, LAST)
        found = [next(samples) for _ in range(3)]
        kill_before_it_answers(pids[0])
        found += samples
        assert pid_of(first) != pids[0]
        once = pool.counters.reissued_steps
        assert once >= 1
        ray.kill(second.handle)
        wait_until(lambda: has_ended(pids[1]))
        found += pool.samples(0, LAST)
        assert pool.counters.reissued_steps > once
        for drawn, batch in zip(found, 2 * plain(graph, tables()), strict=True):
            check_sample(drawn, batch, graph)
        samples = pool.samples(0, LAST)
        next(samples)
        for actor in pool.actors:
            ray.kill(actor.handle)
        with pytest.raises(TrainingFailed, match=r"all 3 sampling actors have ended.* from the last checkpoint"):
            list(samples)


def kill_before_it_answers(pid: int) -> None:
    """Stop a process at once, so that it answers nothing that it is asked for from now on, and kill it later."""
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()


def test_the_only_actor_comes_back_and_goes_on_in_a_stream(tmp_path: Path, store: Store) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pool_of(store, 1) as pool:
        pid = pid_of(pool.actors[0])
        kill_before_it_answers(pid)
        check_batches(pool, store, scratch)
        assert pid_of(pool.actors[0]) != pid
        assert pool.counters.steps == LAST


def test_no_more_is_asked_for_than_is_taken_and_a_pool_closed_early_leaves_no_actor(store: Store) -> None:
    order = counted()
    with pool_of(store, 2, order=order) as pool:
        samples = pool.samples(3, LAST)
        for taken in range(1, 5):
            next(samples)
            allowed = [divmod(step, 5) for step in range(3, 3 + taken - 1 + IN_FLIGHT * 2)]
            assert order.asked == allowed[: len(order.asked)]
        pids = [pid_of(actor) for actor in pool.actors]
    wait_until(lambda: all(has_ended(pid) for pid in pids))
    with pytest.raises(ChannelClosed):
        list(samples)


def test_a_store_that_is_not_there_or_is_another_one_is_bad_input(tmp_path: Path, store: Store) -> None:
    shutil.rmtree(tmp_path / "store")
    with pool_of(store, 1) as pool, pytest.raises(BadInput, match="no manifest") as refused:
        list(pool.samples(0, 3))
    assert type(refused.value) is BadInput
    graph = two_type_graph()
    fewer = replace(graph, relations=graph.relations[:1])
    store_of(fewer, str(tmp_path / "store"))
    with pool_of(store, 1) as pool, pytest.raises(BadInput, match="read the same store"):
        list(pool.samples(0, 3))


def test_a_cluster_without_room_for_any_actor_is_said_so(store: Store) -> None:
    with (
        pool_of(store, 2, cpus_per_actor=100, patience_seconds=2) as pool,
        pytest.raises(TrainingFailed, match="Ray has had no room for a sampling actor for 2 s"),
    ):
        list(pool.samples(0, 3))
