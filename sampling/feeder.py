"""One feeder for all ranks of a host: a process of its own that samples, plans and reads once for all of them.

    producer thread   open_stream -> Stream; steps -> batches of every rank, put into shared memory
    run               waits for messages of ranks and for what was produced, and hands each rank its batches

A rank may have `queue_batches` batches, the one that it works on included; when it has them all, nothing more is
produced until it gives one back. Processes share memory and messages, never a lock, so that none can be left locked by
one that is killed. Sockets have no name in the file system, memory has none at all: whatever is killed, nothing is
left. When a rank ends without a word, the feeder tells the others why, and ends with an error.
"""

import os
import secrets
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from hmac import compare_digest
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from torch import Tensor

from sampling.batch import MiniBatch
from sampling.channel import Channel, ChannelClosed
from sampling.feeder_messages import FeedingFailed, error_message, hello, packed, receive, receive_bytes
from sampling.planned_table import PlannedTable
from sampling.shared_batches import share
from sampling.shared_memory import SharedMemory
from sampling.stream_items import StreamCounters
from storage.features import TierCounters

CONNECT_SECONDS = 600.0
"""for all ranks to come, once one could"""
BATCHES_BEYOND = 2
"""batches of a rank in memory beside the `queue_batches` that it may have, of a stream whose own queue is one long"""


class BatchStream(Protocol):
    """What is served: a `sampling.stream.Stream` of all ranks of the host."""

    counters: StreamCounters
    tables: tuple[PlannedTable | None, ...]

    def batches(self, *, first_step: int, last_step: int) -> Generator[list[MiniBatch], None, None]:
        """For every step, the batches of the ranks in the order that they were given to the feeder."""


OpenStream = Callable[[SharedMemory, ExitStack], BatchStream]
"""opens a stream of the host's ranks, in their order, whose features are served into the memory; what it opens, the
stream too, is closed by the stack"""


@dataclass(frozen=True, eq=False)
class _Outgoing:
    """A message to a rank."""

    data: bytes
    held: tuple[Tensor, ...] | None = None
    """memory of a batch; None for any other message"""


@dataclass(eq=False)
class _Guest:
    """A process at the other end of a connection: a rank once it has said so."""

    connection: socket.socket
    rank: int | None = None
    asked: tuple[int, int] | None = None
    waiting: deque[_Outgoing] = field(default_factory=deque)
    lent: deque[tuple[Tensor, ...]] = field(default_factory=deque)
    """memory of the batches that it has, oldest first"""


class Feeder:
    """Serves the ranks of a host until all of them are done.

    Args:
        ranks: of this host.
        queue_batches: batches of each that it may have, at least 2: one to work on and one that is ready then.
        connect_seconds: how long to wait for all ranks.
    """

    def __init__(self, *, ranks: Sequence[int], queue_batches: int, connect_seconds: float = CONNECT_SECONDS) -> None:
        assert queue_batches >= 2
        self.memory = SharedMemory()
        self._queue_batches = queue_batches
        self._deadline = time.monotonic() + connect_seconds
        # every process of the host can see the name, so it takes the token to be let in
        name, self._token = f"hopstream-{secrets.token_hex(16)}", secrets.token_hex(16)
        self.address = f"{name}:{self._token}"
        """what a rank needs to connect"""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{name}")
        self._listener.listen()
        self._ranks: dict[int, _Guest | None] = dict.fromkeys(ranks)
        self._guests: set[_Guest] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._steps: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._produced: Channel[list[_Outgoing]] = Channel(1)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, self._woken)
        self._num_ready = 0
        """what was produced and not taken yet"""

    def run(self, open_stream: OpenStream) -> None:
        """Serve; raises the stream's error, or FeedingFailed for a rank that has ended before it was done."""
        producer = Thread(target=self._produce, args=(open_stream,), name="hopstream-feed", daemon=True)
        producer.start()
        try:
            while not self._all_came() or any(guest is not None for guest in self._ranks.values()):
                timeout = None if self._all_came() else max(0.0, self._deadline - time.monotonic())
                if timeout == 0.0:
                    missing = [rank for rank, guest in self._ranks.items() if guest is None]
                    raise FeedingFailed(f"ranks {missing} of this host did not ask for their batches in time")
                for key, _ in self._selector.select(timeout):
                    key.data()
                self._begin()
                self._hand_out()
        except BaseException as error:
            self._tell(error)
            raise
        finally:
            self._close()
            producer.join()
            os.close(self._wake)

    def _all_came(self) -> bool:
        return self._listener.fileno() < 0

    def _accept(self) -> None:
        guest = _Guest(self._listener.accept()[0])
        self._guests.add(guest)
        self._selector.register(guest.connection, selectors.EVENT_READ, lambda: self._hear(guest))

    def _hear(self, guest: _Guest) -> None:
        """Take one message."""
        if guest not in self._guests:
            return  # dismissed since it was seen to say something
        if guest.rank is None:
            self._welcome(guest)
            return
        message = receive(guest.connection)
        if message is None:
            raise FeedingFailed(
                f"rank {guest.rank} has ended before it was done (killed, out of memory, or failed): the ranks of its "
                "host cannot go on without it"
            )
        if "next" in message:
            guest.lent.popleft()
        elif "begin" in message:
            first, last = message["begin"]
            guest.asked = (first, last)
        else:
            self._ranks[guest.rank] = None
            self._dismiss(guest)

    def _welcome(self, guest: _Guest) -> None:
        """Let a rank in; send away whoever has not the token, or comes as a rank that is there already."""
        said = receive_bytes(guest.connection)
        missing = [rank for rank, one in self._ranks.items() if one is None]
        guest.rank = next((rank for rank in missing if compare_digest(said, hello(rank=rank, token=self._token))), None)
        if guest.rank is None:
            self._dismiss(guest)
            return
        self._ranks[guest.rank] = guest
        with suppress(ConnectionError):  # that it has ended is heard next
            socket.send_fds(guest.connection, [packed({"memory": self.memory.num_bytes})], [self.memory.descriptor])
        if len(missing) == 1:
            self._selector.unregister(self._listener)
            self._listener.close()
            for stranger in [one for one in self._guests if one.rank is None]:
                self._dismiss(stranger)

    def _dismiss(self, guest: _Guest) -> None:
        self._guests.remove(guest)
        self._selector.unregister(guest.connection)
        guest.connection.close()

    def _woken(self) -> None:
        self._num_ready += os.eventfd_read(self._wake)

    def _begin(self) -> None:
        """Have the next steps produced, once all ranks have asked for them."""
        here = [guest for guest in self._ranks.values() if guest is not None]
        if not self._all_came() or not here or any(guest.asked is None for guest in here):
            return
        steps = {guest.asked for guest in here}
        if len(steps) > 1:
            raise FeedingFailed(f"ranks of one host ask for different steps: {sorted(filter(None, steps))}")
        self._steps.put(steps.pop())
        for guest in here:
            guest.asked = None

    def _hand_out(self) -> None:
        """Take what was produced while every rank has room for it, and send it."""
        guests = [guest for guest in self._ranks.values() if guest is not None]
        while self._all_came():
            for guest in guests:
                self._send(guest)
            if not self._num_ready or any(guest.waiting or len(guest.lent) >= self._queue_batches for guest in guests):
                return
            self._num_ready -= 1
            messages = self._produced.get()
            assert messages is not None, "the producer ends when it is told to, or with an error"
            for to, message in zip(self._ranks.values(), messages, strict=True):
                if to is not None:
                    to.waiting.append(message)

    def _send(self, guest: _Guest) -> None:
        """Send what waits, as far as the socket takes it; where it does not, the rank has messages to answer first."""
        while guest.waiting:
            try:
                guest.connection.send(guest.waiting[0].data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                guest.waiting.clear()  # what it said last is still to be read
                return
            held = guest.waiting.popleft().held
            if held is not None:
                guest.lent.append(held)

    def _tell(self, error: BaseException) -> None:
        """Send every rank the error, behind what it was sent before."""
        for guest in filter(None, self._ranks.values()):
            with suppress(OSError):  # it is gone, or learns from the end of the connection that the feeder is
                guest.connection.send(packed(error_message(error)), socket.MSG_DONTWAIT)

    def _close(self) -> None:
        """End all connections, and have the producer end at its next batch."""
        for guest in list(self._guests):
            self._dismiss(guest)
        self._selector.close()
        self._listener.close()
        self._produced.close()
        self._steps.put(None)
        self.memory.close()

    def _produce(self, open_stream: OpenStream) -> None:
        """The producer: everything that takes time."""
        error: BaseException | None = None
        try:
            with ExitStack() as opened:
                stream = open_stream(self.memory, opened)
                self._put([_Outgoing(packed({"ready": True}))] * len(self._ranks))
                while (steps := self._steps.get()) is not None:
                    self._produce_steps(stream, *steps)
                    end = packed({"end": True, "counters": _counters(stream)})
                    self._put([_Outgoing(end)] * len(self._ranks))
        except ChannelClosed:
            pass
        except BaseException as caught:
            error = caught
        self._produced.end(error)
        os.eventfd_write(self._wake, 1)

    def _produce_steps(self, stream: BatchStream, first_step: int, last_step: int) -> None:
        steps = stream.batches(first_step=first_step, last_step=last_step)
        try:
            while True:
                self._produced.wait_for_room()  # so that no more batches are in memory than were asked for
                batches = next(steps, None)
                if batches is None:
                    return
                shared = [share(batch, self.memory) for batch in batches]
                del batches
                counters = _counters(stream)
                self._put([_Outgoing(packed({**one.description, "counters": counters}), one.held) for one in shared])
                del shared  # what a rank has given back is not held here
        finally:
            if isinstance(steps, Generator):
                steps.close()

    def _put(self, messages: list[_Outgoing]) -> None:
        self._produced.put(messages)
        os.eventfd_write(self._wake, 1)


def _counters(stream: BatchStream) -> dict[str, Any]:
    """What the stream has done for all ranks; for tables that count what they read, that too."""
    read = [getattr(None if table is None else table.below, "counters", None) for table in stream.tables]
    return {
        "stream": asdict(stream.counters),
        "tables": [None if table is None else asdict(table.counters) for table in stream.tables],
        "read": [asdict(counters) if isinstance(counters, TierCounters) else None for counters in read],
    }
