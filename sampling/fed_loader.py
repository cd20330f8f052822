"""A rank's end of the feeder: the batches of `sampling.loader.Loader`, made by another process of the host."""

import socket
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from sampling.batch import MiniBatch
from sampling.feeder_messages import FeedingFailed, Message, error_of, hello, packed, receive, receive_descriptor
from sampling.planned_misses import TableCounters
from sampling.shared_batches import found
from sampling.shared_memory import MappedMemory
from sampling.stream_items import StageCounters, StreamCounters
from storage.features import TierCounters

ENDED = (
    "the feeder of this host has ended (killed, or out of memory): its ranks get no more batches; training goes on "
    "from the last checkpoint when it is started again"
)


class FedLoader:
    """Mini-batches of rank `rank` from the feeder at `address` (`sampling.feeder`).

    Returns when the feeder's stream is open. Raises what opening it raised, and FeedingFailed when there is no feeder
    or it does not let the rank in. `counters`, `tables` and `read` are as of the newest batch and of all ranks of the
    host together, but for `counters.wait_seconds`, which is this rank's.
    """

    def __init__(self, address: str, *, rank: int) -> None:
        self.counters = StreamCounters()
        self.tables: tuple[TableCounters | None, ...] = ()
        """per node type; None where a type has no features"""
        self.read: tuple[TierCounters | None, ...] = ()
        """what was read for each of them; None where it is not counted"""
        name, _, token = address.partition(":")
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            try:
                self._connection.connect(f"\0{name}")
                self._connection.send(hello(rank=rank, token=token))
                answer = receive_descriptor(self._connection)
            except ConnectionError as error:
                raise FeedingFailed(ENDED) from error
            if answer is None:
                raise FeedingFailed(f"the feeder of this host does not serve rank {rank}, or has ended")
            self._memory = MappedMemory(answer[1])
            self._next()
        except BaseException:
            self._connection.close()
            raise

    def batches(self, *, first_step: int, last_step: int) -> Generator[MiniBatch, None, None]:
        """The batches of steps [first_step, last_step), counted from the start of the run over all epochs.

        A batch lies in memory that is used again: it is valid until the next one is asked for, or the loader is
        closed. All ranks of the host ask for the same steps. Who stops before the last has closed the loader. Raises
        the error that stopped the stream at the batch that it stopped, and FeedingFailed when the feeder has ended.
        """
        self._say({"begin": [first_step, last_step]})
        ended = False
        try:
            while True:
                began = time.perf_counter()
                message = self._next()
                waited = self.counters.wait_seconds + time.perf_counter() - began
                self._count(message["counters"], waited)
                if "end" in message:
                    ended = True
                    return
                yield found(message, self._memory)
                self._say({"next": True})
        finally:
            if not ended:
                self.close()

    def close(self) -> None:
        """Tell the feeder that this rank needs no more batches."""
        if self._connection.fileno() >= 0:
            self._say({"done": True})
            self._connection.close()

    def _say(self, message: Message) -> None:
        with suppress(ConnectionError):  # why the feeder has ended comes with what is received next
            self._connection.send(packed(message))

    def _next(self) -> Message:
        message = receive(self._connection)
        if message is None:
            raise FeedingFailed(ENDED)
        if "error" in message:
            raise error_of(message)
        return message

    def _count(self, counters: dict[str, Any], wait_seconds: float) -> None:
        values: dict[str, Any] = {
            name: StageCounters(**value) if isinstance(value, dict) else value
            for name, value in counters["stream"].items()
        }
        self.counters = StreamCounters(**{**values, "wait_seconds": wait_seconds})
        self.tables = tuple(None if table is None else TableCounters(**table) for table in counters["tables"])
        self.read = tuple(None if read is None else TierCounters(**read) for read in counters["read"])
