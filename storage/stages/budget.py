"""How an ingest divides its memory: what must fit, and how large the pieces of each stage may be.

A budget is that of one machine. It holds the process itself and those of workers that are not its threads, two arrays
of a word for every node of the largest type (the floor), and the working memory of the workers. Everything else is cut
into pieces that fit, however many edges there are.
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
        other_bytes: beside the process and the work of tasks: processes of workers.
        waiting_shares: what results that wait for their turn take, in shares of a worker.
    """

    memory_bytes: int
    num_workers: int
    num_nodes: int
    other_bytes: int = 0
    waiting_shares: int = 1

    @classmethod
    def checked(
        cls,
        *,
        memory_bytes: int,
        num_workers: int,
        num_nodes: int,
        worker_bytes: int = 0,
        fixed_bytes: int = 0,
        copies_results: bool = False,
    ) -> "Budget":
        """A budget that can work, with fewer workers where memory asks for it.

        Args:
            memory_bytes: of one machine.
            num_workers: tasks that may run there at once.
            num_nodes: of the largest node type.
            worker_bytes, fixed_bytes, copies_results: see `storage.stages.executor.MachineShare`.

        Raises:
            BadInput: the memory is below the floor, which is named.
        """
        floor = floor_bytes(num_nodes, other_bytes=fixed_bytes + worker_bytes)
        if memory_bytes < floor:
            raise BadInput(
                f"--memory {memory_bytes >> 20}MiB",
                f"{floor >> 20} MiB are needed",
                rule=f"the floor is {floor_bytes(0, other_bytes=fixed_bytes + worker_bytes) >> 20} MiB and "
                f"{BYTES_PER_NODE} bytes for each of the {num_nodes:,} nodes of the largest type",
                remedy=f"give --memory {(floor >> 20) + 1}MiB or more",
            )
        room = memory_bytes - (floor - LEAST_WORKER_BYTES - worker_bytes)
        fitting = max(1, min(num_workers, room // (LEAST_WORKER_BYTES + worker_bytes)))
        return cls(
            memory_bytes=memory_bytes,
            num_workers=fitting,
            num_nodes=num_nodes,
            other_bytes=fixed_bytes + fitting * worker_bytes,
            # a result is half of what its task takes at most; one more than there are workers wait, one is being freed
            waiting_shares=1 + ((fitting + 2) // 2 if copies_results else 0),
        )

    @property
    def worker_bytes(self) -> int:
        """Working memory of one worker."""
        room = self.memory_bytes - PROCESS_BYTES - self.other_bytes - BYTES_PER_NODE * self.num_nodes
        return room // (self.num_workers + self.waiting_shares)

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


def floor_bytes(num_nodes: int, *, other_bytes: int = 0) -> int:
    """The least memory of an ingest whose largest node type has `num_nodes` nodes."""
    return PROCESS_BYTES + other_bytes + LEAST_WORKER_BYTES + BYTES_PER_NODE * num_nodes
