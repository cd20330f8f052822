"""The device tier: the hottest feature rows on the training device; only the others cross from the host.

Ids run hottest first, so the rows of table t that are kept are its prefix [0, n_t). The stream is told n_t and serves
the M_t rows of a batch that lie behind it; the batch is made whole on the device, one batch ahead, in a thread and on
a CUDA stream of its own (N_t rows of type t, H_t = N_t - M_t of them kept here, dim F_t):

    1. pick     ids of the batch -> which kept row each row is [N_t], places of the others [M_t]    on the host
    2. copy     tensors of the batch, rows behind the prefix [M_t, F_t] -> page-locked staging -> device
    3. join     kept rows picked, copied rows put in their places -> features [N_t, F_t]
    4. receive  the consumer's CUDA stream waits for 3, and the memory for the consumer's stream

On the CPU the same code runs without page-locked memory and CUDA streams.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sampling.batch import MiniBatch
from sampling.channel import Channel
from sampling.host_tier import LOAD_BYTES
from sampling.pipeline import Stage, running
from storage.features import Features
from storage.graph import INT32_MAX

ALIGNMENT = 256
"""of tensors in staging"""
GROWTH = 1.25
"""staging that is too small is replaced by this many times what is needed: batches differ a little"""


@dataclass
class DeviceCounters:
    """What the device tier has done."""

    batches: int = 0
    requests: int = 0
    """feature rows of batches"""
    hits: int = 0
    """of them, kept on the device"""
    bytes: int = 0
    """copied to the device: rows behind the prefix and everything else of a batch"""
    seconds: float = 0.0
    """from a batch on the host to the same on the device"""
    waited_for_input_seconds: float = 0.0
    """there was no batch to copy"""
    waited_for_room_seconds: float = 0.0
    """a batch was to be copied, and the one before was not taken yet"""
    wait_seconds: float = 0.0
    """the consumer waited for a batch: the data stall"""


@dataclass(frozen=True, eq=False)
class Picks:
    """Where the rows of one table come from in a batch."""

    kept: Tensor
    """int32 [N_t]: row on the device; any where the row is copied"""
    copied: Tensor
    """int64 [M_t]: places of the copied rows, ascending"""


class DeviceTier:
    """The first rows of feature tables, on the training device.

    Args:
        tables: one per node type, whole; None where a type has no features.
        num_rows: rows of each that are kept; at most the whole table is.
        device: where the batches are used.
    """

    def __init__(self, tables: Sequence[Features | None], *, num_rows: Sequence[int], device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device  # with its number: other threads have another current one
        self.counters = DeviceCounters()
        self.kept = tuple(
            None if table is None else _prefix(table, num_rows=min(wanted, table.num_rows, INT32_MAX), device=device)
            for table, wanted in zip(tables, num_rows, strict=True)
        )

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows of each table that are kept here: what the stream need not serve; 0 where there is no table."""
        return tuple(0 if kept is None else kept.shape[0] for kept in self.kept)

    def pick(self, batch: MiniBatch) -> list[Picks | None]:
        """Where each table's rows of a batch on the host come from; None where none comes from the device."""
        types, ids = batch.node_type.numpy(), batch.node_id.numpy()
        picks: list[Picks | None] = []
        for number, num_rows in enumerate(self.num_rows):
            if batch.features[number] is None:
                picks.append(None)
                continue
            rows = ids if len(self.kept) == 1 else ids[types == number]
            copied = np.flatnonzero(rows >= num_rows)
            self.counters.requests += rows.shape[0]
            self.counters.hits += rows.shape[0] - copied.shape[0]
            if copied.shape[0] == rows.shape[0]:
                picks.append(None)
                continue
            kept = np.minimum(rows, num_rows - 1).astype(np.int32)
            picks.append(Picks(torch.from_numpy(kept), torch.from_numpy(copied)))
        return picks

    def join(self, number: int, picks: Picks, copied: Tensor) -> Tensor:
        """Features [N_t, F_t] of a batch from the rows kept here and the copied ones [M_t, F_t], all on the device."""
        kept = self.kept[number]
        assert kept is not None
        return kept.index_select(0, picks.kept).index_copy_(0, picks.copied, copied)


def on_device(
    batches: Iterable[MiniBatch], tier: DeviceTier, *, whole: bool = False
) -> Generator[MiniBatch, None, None]:
    """The batches in their order on the tier's device, whole; the next is copied while one is used.

    `batches` is iterated in another thread, and closed there if it is a generator; an error it raises is raised at
    the batch that it stopped. The next batch is asked for once the one before is on the device, so its memory may be
    used again then. Two batches are on the device at a time. Who stops before the last closes the generator.

    Args:
        batches: on the host, of whose features only the rows behind the tier's prefixes are there, in batch order.
        whole: all rows are there instead; those that the device keeps are not copied.
    """
    out: Channel[_Arrival] = Channel(1)
    waited = tier.counters.wait_seconds
    with running([Stage(lambda: _copy_all(batches, tier, out, whole=whole), None, out)], wake=lambda: None):
        for arrival in out:
            tier.counters.wait_seconds = waited + out.get_seconds
            yield arrival.received()


@dataclass(frozen=True, eq=False)
class _Arrival:
    """A batch on the device, or on its way there."""

    batch: MiniBatch
    ready: torch.cuda.Event | None
    """that it is there; None on the CPU"""

    def received(self) -> MiniBatch:
        """The batch, for use on the calling thread's current CUDA stream."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.batch.node_id.device)
            current.wait_event(self.ready)
            for tensor in _tensors(self.batch):
                tensor.record_stream(current)  # its memory is not given to the next copy before this stream is done
        return self.batch


def _copy_all(batches: Iterable[MiniBatch], tier: DeviceTier, out: Channel[_Arrival], *, whole: bool) -> None:
    """The thread that copies."""
    counters = tier.counters
    copies = _Copies(tier.device)
    for kept in tier.kept:
        if kept is not None and copies.stream is not None:
            kept.record_stream(copies.stream)
    source = iter(batches)
    try:
        with copies.context():
            while True:
                began = time.perf_counter()
                batch = next(source, None)
                counters.waited_for_input_seconds += time.perf_counter() - began
                if batch is None:
                    return
                began = time.perf_counter()
                out.wait_for_room()
                counters.waited_for_room_seconds += time.perf_counter() - began
                began = time.perf_counter()
                arrived = _made_whole(batch, tier, copies, whole=whole)
                ready = None
                if copies.stream is not None:
                    ready = torch.cuda.Event(blocking=True)
                    ready.record(copies.stream)
                out.put(_Arrival(arrived, ready))
                if ready is not None:
                    ready.synchronize()  # neither staging nor the batch on the host is read any more
                counters.batches += 1
                counters.bytes += copies.num_bytes
                counters.seconds += time.perf_counter() - began
                del batch, arrived
    finally:
        if isinstance(source, Generator):
            source.close()


def _made_whole(batch: MiniBatch, tier: DeviceTier, copies: "_Copies", *, whole: bool) -> MiniBatch:
    """The batch on the device; what is not part of it is not kept there."""
    picks = tier.pick(batch)
    passing: list[Tensor] = []
    for number, (rows, pick) in enumerate(zip(batch.features, picks, strict=True)):
        if rows is None:
            continue
        if pick is not None:
            passing += [pick.kept, pick.copied]
            if whole:
                rows = rows.index_select(0, pick.copied)  # noqa: PLW2901
            assert rows.shape[0] == pick.copied.shape[0], f"table {number}: not the rows behind {tier.num_rows[number]}"
        passing.append(rows)
    rest = replace(batch, features=())
    there, passed = (iter(group) for group in copies.copied(_tensors(rest), passing))
    features: list[Tensor | None] = []
    for number, (rows, pick) in enumerate(zip(batch.features, picks, strict=True)):
        if rows is None:
            features.append(None)
        elif pick is None:
            features.append(next(passed))
        else:
            arrived = Picks(next(passed), next(passed))
            features.append(tier.join(number, arrived, next(passed)))
    changed: MiniBatch = _changed(rest, lambda _: next(there))
    return replace(changed, features=tuple(features))


class _Copies:
    """Copies to a device on a CUDA stream of their own, each group of tensors in one piece through staging."""

    def __init__(self, device: torch.device) -> None:
        self.num_bytes = 0
        """of the newest copies"""
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._device = device
        self._staging = torch.empty(0, dtype=torch.uint8)

    def context(self) -> AbstractContextManager[Any]:
        """In which the copies, and all that is made of them, are on this stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def copied(self, *groups: Sequence[Tensor]) -> list[list[Tensor]]:
        """The groups on the device; staging is used again by the next call, once this stream is done."""
        sizes = [[_aligned(tensor.nbytes) for tensor in group] for group in groups]
        self.num_bytes = sum(map(sum, sizes))
        room = self._room(self.num_bytes)
        found: list[list[Tensor]] = []
        for group, taken in zip(groups, sizes, strict=True):
            here, room = room[: sum(taken)], room[sum(taken) :]
            begins = np.cumsum([0, *taken])[:-1].tolist()
            for tensor, begin in zip(group, begins, strict=True):
                np.copyto(_at(here, begin, tensor).numpy(), tensor.numpy())  # in this thread alone, unlike torch
            there = here.to(self._device, non_blocking=True, copy=True)
            found.append([_at(there, begin, tensor) for tensor, begin in zip(group, begins, strict=True)])
        return found

    def _room(self, num_bytes: int) -> Tensor:
        if num_bytes > self._staging.shape[0]:
            self._staging = torch.empty(0, dtype=torch.uint8)  # first, so that the two are not there together
            size = int(GROWTH * num_bytes)
            self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=self.stream is not None)
        return self._staging[:num_bytes]


def _at(memory: Tensor, begin: int, like: Tensor) -> Tensor:
    """The bytes of `memory` from `begin` on as a tensor of the type and shape of `like`."""
    return memory[begin : begin + like.nbytes].view(like.dtype).view(like.shape)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _prefix(table: Features, *, num_rows: int, device: torch.device) -> Tensor:
    """Rows [0, num_rows) of a table on a device, read in parts."""
    dtype = torch.from_numpy(np.empty(0, dtype=table.dtype)).dtype
    kept = torch.empty((num_rows, table.dim), dtype=dtype, device=device)
    step = max(1, LOAD_BYTES // max(1, table.dim * table.dtype.itemsize))
    for first in range(0, num_rows, step):
        rows = np.arange(first, min(first + step, num_rows), dtype=np.int64)
        part = np.empty((rows.shape[0], table.dim), dtype=table.dtype)
        table.gather(rows, part)
        kept[first : first + rows.shape[0]] = torch.from_numpy(part)
    return kept


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch, or a part of one, with `change` done to each of its tensors, in the order of their fields."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _changed(getattr(value, one.name), change) for one in fields(value)})
    if isinstance(value, tuple):
        return tuple(_changed(one, change) for one in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors of a batch, in the order of their fields."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _changed(value, note)
    return found
