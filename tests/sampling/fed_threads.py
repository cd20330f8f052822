"""A feeder in a thread of this process, and loaders that are connected to it over real sockets."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

from sampling.fed_loader import FedLoader
from sampling.feeder import Feeder
from sampling.feeder_messages import FeedingFailed
from sampling.shared_memory import SharedMemory
from sampling.stream import Stream
from storage.errors import BadInput
from tests.laws.test_stream import Planned, plain, tables
from tests.sampling.fed_processes import digests
from tests.sampling.graphs import two_type_graph
from tests.sampling.tables import ArrayTable


def side_by_side(*jobs: Callable[[], object]) -> None:
    """Run each in a thread of its own, to the end: ranks wait for each other."""
    threads = [Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


class Feeding:
    """A feeder in a thread of this process, over the two-type graph."""

    def __init__(
        self,
        folder: Path,
        *,
        ranks: tuple[int, ...] = (0, 1),
        world_size: int = 2,
        queue_batches: int = 2,
        given: list[ArrayTable] | None = None,
        error: Exception | None = None,
        connect_seconds: float = 60.0,
    ) -> None:
        self.feeder = Feeder(ranks=ranks, queue_batches=queue_batches, connect_seconds=connect_seconds)
        self.given = given or tables()
        self.planned: Planned | None = None
        self.ended: BaseException | None = None
        self._folder = folder
        self._ranks, self._world_size = ranks, world_size
        self._error = error
        self._thread = Thread(target=self._run)
        self._thread.start()

    def _open(self, memory: SharedMemory, opened: ExitStack) -> Stream:
        if self._error is not None:
            raise self._error
        self.planned = Planned(
            two_type_graph(),
            self.given,
            self._folder,
            num_slots=0,
            superbatch=1,
            packing="never",
            ranks=self._ranks,
            world_size=self._world_size,
            memory=memory,
        )
        opened.callback(self.planned.stream.close)
        return self.planned.stream

    def _run(self) -> None:
        try:
            self.feeder.run(self._open)
        except BaseException as error:
            self.ended = error

    def end(self) -> BaseException | None:
        """What the feeder ended with."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.ended


@contextmanager
def connected(feeding: Feeding, *ranks: int) -> Iterator[list[FedLoader]]:
    """A loader for each rank; each waits for the others, so they come side by side."""
    found: dict[int, FedLoader | Exception] = {}

    def connect(rank: int) -> None:
        try:
            found[rank] = FedLoader(feeding.feeder.address, rank=rank)
        except (FeedingFailed, BadInput) as error:
            found[rank] = error

    side_by_side(*(partial(connect, rank) for rank in ranks))
    loaders = []
    for rank in ranks:
        loader = found[rank]
        if isinstance(loader, Exception):
            raise loader
        loaders.append(loader)
    try:
        yield loaders
    finally:
        for loader in loaders:
            loader.close()


def expected(rank: int, world_size: int) -> list[str]:
    return digests(plain(two_type_graph(), tables(), rank=rank, world_size=world_size))
