"""Samples from a pool of Ray actors on any machines of the cluster: the same bytes as from threads of this process.

    samples   steps in order <- answers, kept until it is their turn
    ask       seeds of a step -> the actor with the least to do, at most IN_FLIGHT steps each
    answer    a finished step, an actor that is there or has opened the store, or that an actor has ended

At most IN_FLIGHT steps an actor are asked for and not yet taken; the next is asked for when the consumer asks for its
own, and Ray's object store holds no more than these. A sample is a function of its step alone, so it may be drawn by
anyone, and twice: the steps of an actor that ends go to the others, Ray starts it anew, and it reads the store again by
itself. An actor belongs to the process that made the pool, and Ray ends it with that process, or the pool at `close`.
"""

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from sampling.channel import ChannelClosed
from sampling.drawn import Drawn
from sampling.fanouts import HopFanout
from sampling.modes import UNIFORM, SamplingMode
from sampling.seeds import SeedOrder
from sampling.sources import rank_seeds
from service.errors import TrainingFailed
from service.sampler_actor import ActorWork, DrawnThere, GraphFrame, SamplerActor, SeedSlice, SentStep
from storage.store import Store

IN_FLIGHT = 2
"""steps of an actor: one that it draws and one that waits, so that it never waits itself"""
RESTARTS = 10
"""times that Ray starts an actor anew whose process has ended"""
PATIENCE_SECONDS = 600.0
"""until a pool of which no actor has a process is given up"""
POLL_SECONDS = 1.0
FOR_EVER = -1


@dataclass
class PoolCounters:
    """What a pool has done; nodes and edges are summed over ranks, seconds over actors."""

    steps: int = 0
    nodes: int = 0
    edges: int = 0
    actor_seconds: float = 0.0
    """of drawing"""
    wait_seconds: float = 0.0
    """in which the consumer waited for a step"""
    reissued_steps: int = 0
    """asked for again, because their actor had ended"""


class PoolActor:
    """An actor as its pool knows it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.asked: dict[Any, int] = {}
        """steps by what Ray will answer them with"""
        self.ended: str | None = None
        """why, once it is gone for good"""
        self.join()

    def join(self) -> None:
        """Ask it, or the one that Ray starts in its place, to open the store."""
        self.arriving: Any = self.handle.here.options(max_task_retries=FOR_EVER).remote()
        self.opening: Any = self.handle.open.options(max_task_retries=FOR_EVER).remote()

    @property
    def is_here(self) -> bool:
        """It has a process, as far as is known."""
        return self.arriving is None and self.ended is None

    @property
    def num_free(self) -> int:
        """Steps that it can be asked for."""
        ready = self.is_here and self.opening is None
        return IN_FLIGHT - len(self.asked) if ready else 0

    def pending(self) -> list[Any]:
        """What it has yet to answer."""
        return [*(reference for reference in (self.arriving, self.opening) if reference is not None), *self.asked]


@dataclass
class Flight:
    """The steps of one call of `samples`."""

    todo: list[int] = field(default_factory=list)
    """a heap of steps to ask for"""
    done: dict[int, SentStep] = field(default_factory=dict)
    """steps that it was not the turn of yet"""


class ActorSource:
    """Implements `sampling.sources.SampleSource` on the Ray cluster that this process is connected to.

    Args:
        store: open here; every actor opens the same generation of it for itself, through a block cache like its own.
        fanouts, seed, mode: as of `sampling.neighbors.NeighborSampler`.
        order: the seed order.
        num_actors: how many, spread over the machines of the cluster.
        ranks: whose slices are sampled, of `world_size`.
        cpus_per_actor: that Ray sets aside.
        patience_seconds: see PATIENCE_SECONDS.

    Memory of a machine: for every actor on it, the topology and 4 bytes a node, and a process; in Ray's object store,
    IN_FLIGHT steps an actor. A call of `samples` ends the one before.
    """

    def __init__(
        self,
        store: Store,
        *,
        fanouts: Sequence[HopFanout],
        seed: int,
        order: SeedOrder,
        num_actors: int,
        mode: SamplingMode = UNIFORM,
        ranks: Sequence[int] = (0,),
        world_size: int = 1,
        cpus_per_actor: float = 1.0,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        assert num_actors >= 1
        assert ray.is_initialized(), "connect to a cluster first (service.ray_cluster)"
        self.counters = PoolCounters()
        self._frame = GraphFrame.of(store)
        self._order = order
        self._node_times = mode.node_times if mode.is_temporal else None
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._patience_seconds = patience_seconds
        self._closed = False
        work = ActorWork(
            store=store.place.local("") or store.place.url,
            generation=store.generation.generation,
            generation_xxh64=store.generation_xxh64,
            block_cache=store.place.block_cache,
            fanouts=tuple(fanouts),
            seed=seed,
            mode=replace(mode, node_times=None),
        )
        make = ray.remote(SamplerActor).options(
            num_cpus=cpus_per_actor, max_restarts=RESTARTS, scheduling_strategy="SPREAD"
        )
        self.actors = [PoolActor(make.remote(work)) for _ in range(num_actors)]

    def samples(self, first_step: int, last_step: int) -> Iterator[list[Drawn]]:
        """See `SampleSource`.

        Raises BadInput when the store cannot be opened where an actor is; TrainingFailed when no actor is left, or
        Ray has no room for any.
        """
        flight = Flight()
        for actor in self.actors:
            actor.asked.clear()  # by a call that was left early; nobody takes them any more
        next_step = first_step
        for wanted in range(first_step, last_step):
            end = min(last_step, wanted + IN_FLIGHT * len(self.actors))
            for step in range(next_step, end):
                heapq.heappush(flight.todo, step)
            next_step = max(next_step, end)
            began = time.perf_counter()
            last_seen = time.monotonic()
            self._ask(flight)
            while wanted not in flight.done:
                last_seen = self._answer(flight, last_seen)
                self._ask(flight)
            self.counters.wait_seconds += time.perf_counter() - began
            yield self._drawn(flight.done.pop(wanted))

    def close(self) -> None:
        """End the actors, whatever they do."""
        self._closed = True
        if ray.is_initialized():  # else Ray has ended them, and must not be started for this
            for actor in self.actors:
                ray.kill(actor.handle)

    def _ask(self, flight: Flight) -> None:
        """Hand steps to actors, the earliest first, as long as one is free."""
        while flight.todo:
            actor = max(self.actors, key=lambda actor: actor.num_free)
            if not actor.num_free:
                return
            step = heapq.heappop(flight.todo)
            actor.asked[actor.handle.sample.remote(self._slices(step))] = step

    def _answer(self, flight: Flight, last_seen: float) -> float:
        """Wait a little for an answer and take note of it; the last time that an actor was there."""
        if self._closed:
            raise ChannelClosed
        waiting = {reference: actor for actor in self.actors for reference in actor.pending()}
        if not waiting:
            raise TrainingFailed(
                f"all {len(self.actors)} sampling actors have ended, the last one so: {self.actors[-1].ended}; "
                "the same command goes on from the last checkpoint"
            )
        for reference in ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)[0]:
            actor = waiting[reference]
            if reference in actor.asked:
                self._take(flight, actor, reference)
            else:
                _note(actor, reference)
        now = time.monotonic()
        if any(actor.is_here for actor in self.actors):
            return now
        if now - last_seen > self._patience_seconds:
            raise TrainingFailed(
                f"Ray has had no room for a sampling actor for {self._patience_seconds:.0f} s; give the cluster more "
                "CPUs, or ask for fewer workers and sampling actors"
            )
        return last_seen

    def _take(self, flight: Flight, actor: PoolActor, reference: Any) -> None:
        """A step's samples, or the step once more."""
        step = actor.asked.pop(reference)
        try:
            flight.done[step] = _result(reference)
        except RayError:
            self.counters.reissued_steps += 1
            heapq.heappush(flight.todo, step)
            if actor.is_here:
                actor.join()

    def _slices(self, run_step: int) -> list[SeedSlice]:
        times = self._node_times
        return [
            SeedSlice(epoch, step, seeds, None if times is None else times[seeds])
            for epoch, step, seeds in rank_seeds(self._order, run_step, self._ranks, self._world_size)
        ]

    def _drawn(self, sent: SentStep) -> list[Drawn]:
        drawn: list[Drawn] = [DrawnThere(sample, self._frame) for sample in sent.samples]
        self.counters.steps += 1
        self.counters.nodes += sum(batch.nodes.shape[0] for batch in drawn)
        self.counters.edges += sum(batch.num_edges for batch in drawn)
        self.counters.actor_seconds += sent.seconds
        return drawn


def _note(actor: PoolActor, reference: Any) -> None:
    """An actor has a process, or has opened the store, or neither ever again."""
    try:
        _result(reference)
    except RayError as error:
        actor.ended = _reason(error)
        actor.arriving = actor.opening = None
        return
    if reference == actor.arriving:
        actor.arriving = None
    else:
        actor.opening = None


def _result(reference: Any) -> Any:
    """What an actor returned; what it raised as it was raised there; RayError when its process or answer is lost."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception) and not isinstance(error.cause, RayError):
            raise error.cause from None
        raise TrainingFailed(f"a sampling actor failed: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
