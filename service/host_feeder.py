"""The feeder of a host as a Ray actor: on the node of the ranks that it serves, and no longer there than they are."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampling.feeder import BATCHES_BEYOND, BatchStream, Feeder
from sampling.shared_memory import SharedMemory
from service.process import keep_freed_memory
from service.run_file import RunFile
from service.run_folder import open_same_store
from service.seed_nodes import seed_order
from service.tiers import block_cache_of
from storage.store import Store

if TYPE_CHECKING:
    from service.feeding import OpenStream

END_SECONDS = 10.0


class FeederActor:
    """What the actor does; it opens the store itself, at the generation of the ranks that it serves.

    Args:
        run: the run file as JSON values.
        generation, generation_xxh64: of the store.
        ranks: of the host, of `world_size`.
        open_stream: `service.feeding.OpenStream`.
    """

    def __init__(
        self,
        run: dict[str, Any],
        *,
        generation: int,
        generation_xxh64: str,
        ranks: Sequence[int],
        world_size: int,
        open_stream: "OpenStream",
    ) -> None:
        keep_freed_memory()
        self._run = RunFile.model_validate(run)
        self._generation = generation
        self._generation_xxh64 = generation_xxh64
        self._ranks = tuple(ranks)
        self._world_size = world_size
        self._open_stream = open_stream
        self._feeder = Feeder(ranks=ranks, queue_batches=queue_batches(self._run))

    def address(self) -> str:
        """Where ranks connect."""
        return self._feeder.address

    def feed(self) -> None:
        """Serve until all ranks are done; what goes wrong is told to them."""
        self._feeder.run(self._open)

    def _open(self, memory: SharedMemory, opened: ExitStack) -> BatchStream:
        run = self._run
        store = open_same_store(
            run.data.store,
            generation=self._generation,
            generation_xxh64=self._generation_xxh64,
            what="a run",
            block_cache=block_cache_of(run.tiers),
        )
        order = seed_order(store, run)
        return self._open_stream(
            store,
            run,
            order=order,
            ranks=self._ranks,
            world_size=self._world_size,
            opened=opened,
            memory=memory,
        )


class HostFeeder:
    """The actor, in the hands of the rank that started it, without which it ends."""

    def __init__(
        self, store: Store, run: RunFile, *, ranks: Sequence[int], world_size: int, open_stream: "OpenStream"
    ) -> None:
        self._actor = _start(
            run.model_dump(mode="json"),
            generation=store.generation.generation,
            generation_xxh64=store.generation_xxh64,
            ranks=ranks,
            world_size=world_size,
            open_stream=open_stream,
        )
        self.address: str = ray.get(self._actor.address.remote())
        self._feeding = self._actor.feed.remote()

    def __enter__(self) -> Self:
        """Running already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a little for the other ranks to be done, then end the process.

        After an error nothing is waited for, and the process ends with this one: if it ended now, the other ranks
        would fail for want of batches, which would hide why.
        """
        if kind is None:
            ray.wait([self._feeding], timeout=END_SECONDS)
            ray.kill(self._actor)


def _start(*arguments: Any, **settings: Any) -> Any:
    """An actor on this node; it takes no CPU from those that are given out."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(FeederActor).options(scheduling_strategy=here).remote(*arguments, **settings)


def queue_batches(run: RunFile) -> int:
    """Batches that a rank may have from a feeder, so that with those in the making there are the run file's number."""
    return max(2, run.sampling.queue_batches - BATCHES_BEYOND)
