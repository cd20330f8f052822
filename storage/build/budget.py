"""How an ingest divides its memory: what must fit, and how large the pieces of each stage may be.

A budget holds the process itself, two arrays of a word for every node of the largest type (the floor), and the
working memory of the workers. Everything else is cut into pieces that fit, however many edges there are.
"""

from dataclasses import dataclass

from storage.errors import BadInput

PROCESS_BYTES = 256 << 20
"""Python, NumPy, Arrow and compiled kernels"""
BYTES_PER_NODE = 16
"""of the largest node type: levels and degrees while nodes are ordered"""
LEAST_WORKER_BYTES = 48 << 20
"""below this the pieces of a stage become too small to be worth their overhead"""

_LEAST_ROWS, _MOST_ROWS = 1 << 8, 1 << 20
_MOST_SORT_ROWS = 1 << 23


@dataclass(frozen=True)
class Budget:
    """Memory of one ingest.

    Attributes:
        memory_bytes: of the whole process tree.
        num_workers: tasks that run at once.
        num_nodes: of the largest node type.
    """

    memory_bytes: int
    num_workers: int
    num_nodes: int

    @classmethod
    def checked(cls, *, memory_bytes: int, num_workers: int, num_nodes: int) -> "Budget":
        """A budget that can work, with fewer workers where memory asks for it.

        Raises:
            BadInput: the memory is below the floor, which is named.
        """
        floor = floor_bytes(num_nodes)
        if memory_bytes < floor:
            raise BadInput(
                f"--memory {memory_bytes >> 20}MiB",
                f"{floor >> 20} MiB are needed",
                rule=f"the floor is {(PROCESS_BYTES + LEAST_WORKER_BYTES) >> 20} MiB and {BYTES_PER_NODE} bytes for "
                f"each of the {num_nodes:,} nodes of the largest type",
                remedy=f"give --memory {(floor >> 20) + 1}MiB or more",
            )
        room = memory_bytes - (floor - LEAST_WORKER_BYTES)
        return cls(
            memory_bytes=memory_bytes,
            num_workers=max(1, min(num_workers, room // LEAST_WORKER_BYTES)),
            num_nodes=num_nodes,
        )

    @property
    def worker_bytes(self) -> int:
        """Working memory of one worker; results that wait for their turn take the share of one more."""
        room = self.memory_bytes - PROCESS_BYTES - BYTES_PER_NODE * self.num_nodes
        return room // (self.num_workers + 1)

    def rows(self, bytes_per_row: int) -> int:
        """Rows of a piece that a worker streams, at `bytes_per_row` of working memory."""
        return max(_LEAST_ROWS, min(_MOST_ROWS, self.worker_bytes // max(1, bytes_per_row)))

    def sort_rows(self, bytes_per_row: int) -> int:
        """Rows of a piece that a worker holds whole, at `bytes_per_row` of working memory."""
        return max(_LEAST_ROWS, min(_MOST_SORT_ROWS, self.worker_bytes // max(1, bytes_per_row)))

    def private_arrays(self, num_bytes: int) -> int:
        """How many workers can hold an array of `num_bytes` each at once; at least one."""
        room = BYTES_PER_NODE * self.num_nodes + self.worker_bytes * self.num_workers
        return max(1, min(self.num_workers, room // max(1, num_bytes)))


def floor_bytes(num_nodes: int) -> int:
    """The least memory of an ingest whose largest node type has `num_nodes` nodes."""
    return PROCESS_BYTES + LEAST_WORKER_BYTES + BYTES_PER_NODE * num_nodes
