"""Memory that the missed rows of a table are read into, handed back and forth between two stages of the stream."""

from queue import Queue

from sampling.channel import ChannelClosed
from storage.block_reads import Staging

NUM_LANDINGS = 2
"""one is read into while the batches of the other are served"""


class Landings:
    """A few pieces of memory of `num_bytes` each."""

    def __init__(self, num_bytes: int) -> None:
        self._free: Queue[Staging | None] = Queue()
        for _ in range(NUM_LANDINGS):
            self._free.put(Staging(max(1, num_bytes)))

    def take(self) -> Staging:
        """A free one; raises ChannelClosed when nobody serves any more."""
        landing = self._free.get()
        if landing is None:
            raise ChannelClosed
        return landing

    def give_back(self, landing: Staging) -> None:
        """The batches that landed there have been served."""
        self._free.put(landing)

    def wake(self) -> None:
        """Nobody serves any more."""
        self._free.put(None)
