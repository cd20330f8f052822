"""Where a rank's batches come from: a stream of its own when it is alone on its host, else the host's one feeder.

one rank on the host    open_stream -> Stream, in threads of this process
several                 the first of them starts a feeder (`service.host_feeder`), an actor on the same node, which
                        opens one stream for all; its address goes round, and every rank connects
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import Protocol

import torch

from sampling.batch import MiniBatch
from sampling.fed_loader import FedLoader
from sampling.feeder import BatchStream
from sampling.feeder_messages import FeedingFailed
from sampling.planned_misses import TableCounters
from sampling.seeds import SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.stream_items import StreamCounters
from service.errors import TrainingFailed
from service.group import Group
from service.run_file import RunFile
from storage.features import TierCounters
from storage.store import Store

ADDRESS_BYTES = 128


class OpenStream(Protocol):
    """Opens the stream of some ranks of one host: a function of a module, so that the feeder can import it."""

    def __call__(
        self,
        store: Store,
        run: RunFile,
        *,
        order: SeedOrder,
        ranks: Sequence[int],
        world_size: int,
        opened: ExitStack,
        memory: FeatureMemory | None,
    ) -> BatchStream:
        """Everything that is opened is closed by `opened`.

        Args:
            memory: for the features of batches; None for the stream's own. With one, the stream's queue is one batch
                long: the feeder keeps those that wait.
        """


class BatchLoader(Protocol):
    """Mini-batches of one rank, wherever they are made; a batch is valid until the next one is asked for."""

    @property
    def counters(self) -> StreamCounters:
        """Of all ranks of the host, but for `wait_seconds`, which is this rank's."""

    @property
    def tables(self) -> Sequence[TableCounters | None]:
        """Per node type, of all ranks of the host; None where a type has no features."""

    @property
    def read(self) -> Sequence[TierCounters | None]:
        """What was read for each of them; None where it is not counted."""

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """The batches of steps [first_step, last_step), counted from the start of the run over all epochs."""

    def close(self) -> None:
        """Nothing more is asked for."""


class OwnLoader:
    """A stream that serves one rank."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    @property
    def counters(self) -> StreamCounters:
        """See `BatchLoader`."""
        return self._stream.counters

    @property
    def tables(self) -> Sequence[TableCounters | None]:
        """See `BatchLoader`."""
        return [None if table is None else table.counters for table in self._stream.tables]

    @property
    def read(self) -> Sequence[TierCounters | None]:
        """See `BatchLoader`."""
        found = [None if table is None else getattr(table.below, "counters", None) for table in self._stream.tables]
        return [counters if isinstance(counters, TierCounters) else None for counters in found]

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """See `BatchLoader`."""
        with closing(self._stream.batches(first_step=first_step, last_step=last_step)) as stream:
            for (batch,) in stream:
                yield batch

    def close(self) -> None:
        """See `BatchLoader`; the stack that the stream was opened with closes it."""


class HostLoader:
    """A rank's end of the feeder of its host; TrainingFailed is raised when that, or another rank there, has ended."""

    def __init__(self, address: str, *, rank: int) -> None:
        try:
            self._fed = FedLoader(address, rank=rank)
        except FeedingFailed as error:
            raise TrainingFailed(str(error)) from error

    @property
    def counters(self) -> StreamCounters:
        """See `BatchLoader`."""
        return self._fed.counters

    @property
    def tables(self) -> Sequence[TableCounters | None]:
        """See `BatchLoader`."""
        return self._fed.tables

    @property
    def read(self) -> Sequence[TierCounters | None]:
        """See `BatchLoader`."""
        return self._fed.read

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """See `BatchLoader`."""
        try:
            yield from self._fed.batches(first_step=first_step, last_step=last_step)
        except FeedingFailed as error:
            raise TrainingFailed(str(error)) from error

    def close(self) -> None:
        """See `BatchLoader`; the feeder ends when all ranks are done."""
        self._fed.close()


def open_loader(
    store: Store,
    run: RunFile,
    *,
    order: SeedOrder,
    group: Group,
    ranks: Sequence[int],
    device: torch.device,
    open_stream: OpenStream,
    opened: ExitStack,
) -> BatchLoader:
    """The loader of this rank; every rank of all hosts calls it, at the same point. `opened` closes it.

    Args:
        ranks: of this host, see `ranks_of_host`.
        device: on which the group's collectives work.

    Raises what `open_stream` raises, on every rank of the host; TrainingFailed when the feeder ends.
    """
    if len(ranks) == 1:
        share_address("", group=group, owner=group.rank, device=device)  # the ranks of other hosts share theirs now
        stream = open_stream(
            store, run, order=order, ranks=ranks, world_size=group.world_size, opened=opened, memory=None
        )
        return OwnLoader(stream)
    from service.host_feeder import HostFeeder

    feeder: HostFeeder | None = None
    failed: Exception | None = None
    if group.rank == ranks[0]:
        try:
            feeder = HostFeeder(store, run, ranks=ranks, world_size=group.world_size, open_stream=open_stream)
        except Exception as error:  # the other ranks of the host wait for an address
            failed = error
    address = share_address("" if feeder is None else feeder.address, group=group, owner=ranks[0], device=device)
    if failed is not None:
        raise failed
    if not address:
        raise TrainingFailed(f"rank {ranks[0]} could not start the feeder of this host")
    if feeder is not None:
        opened.enter_context(feeder)
    loader = HostLoader(address, rank=group.rank)
    opened.callback(loader.close)
    return loader


def ranks_of_host(group: Group, *, device: torch.device) -> list[int]:
    """The ranks on this rank's node, in order; every rank calls it, under Ray Train where there are several."""
    if group.world_size == 1:
        return [group.rank]
    from ray.train import get_context

    node = get_context().get_node_rank()
    nodes = group.gather_rows(torch.tensor([[node]], dtype=torch.int64, device=device))[:, 0].tolist()
    return [rank for rank, where in enumerate(nodes) if where == node]


def share_address(address: str, *, group: Group, owner: int, device: torch.device) -> str:
    """The address that rank `owner` gives; every rank of all hosts calls it, each with the owner of its own host."""
    text = address.encode("ascii")
    assert len(text) <= ADDRESS_BYTES
    row = torch.zeros((1, ADDRESS_BYTES), dtype=torch.uint8)
    row[0, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
    rows = group.gather_rows(row.to(device)).cpu()
    return bytes(rows[owner].tolist()).rstrip(b"\0").decode("ascii")
