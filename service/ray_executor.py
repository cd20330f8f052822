"""An ingest's tasks on Ray: the same files and the same bytes as from threads of one process.

    ray_executor   joins or starts Ray, counts its workers and what they cost -> RayExecutor
    RayExecutor    tasks -> Ray tasks of one CPU, at most num_workers at once -> results in the order of the tasks

Workers read the tables and read and write temporary files; the store itself is written by the process that ingests. A
task whose worker dies is done again by Ray. That is safe: a task writes whole files, each under a name that is its
task's own, from the first byte on, or its own bytes of a file that is there; nobody reads them before it is done.

Memory (`--memory`) is that of one machine, of the one with most workers where there are several:

    256 MiB        the process that ingests
    256 MiB        each worker: a process here
    384 MiB        Ray's own processes, where they are started for this ingest
    80 MiB         Ray's object store at its smallest
    16 B a node    of the largest type
    the rest       a third for results that wait in the object store, and two for tasks under way, as
                   `storage.stages.budget` shares it out; fewer workers where it is too little
"""

import contextlib
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from service.ray_cluster import named_cluster, ray_cluster
from storage.errors import BadInput
from storage.stages.budget import LEAST_WORKER_BYTES, PROCESS_BYTES
from storage.stages.executor import MachineShare

RAY_BYTES = 384 << 20
"""of the processes that Ray itself runs on a machine (measured: 330 MiB)"""
LEAST_OBJECT_BYTES = 80 << 20
"""Ray starts with no smaller object store than 75 MiB"""
RETRIES = 3
"""times that a task is done again whose worker died"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""of workers: a task has one CPU"""

Task = TypeVar("Task")
Result = TypeVar("Result")


class RayExecutor:
    """Implements `storage.stages.executor.Executor` on the Ray cluster that this process is connected to.

    Args:
        num_workers: tasks at once.
        machine: what they take of a machine.
    """

    def __init__(self, num_workers: int, *, machine: MachineShare) -> None:
        self.num_workers = num_workers
        self.machine = machine

    def limited(self, num_workers: int) -> "RayExecutor":
        """As `Executor.limited`; Ray may put all tasks on one machine, so the limit then holds for all together."""
        if num_workers >= self.machine.num_workers:
            return self
        return RayExecutor(min(num_workers, self.num_workers), machine=self.machine)

    def map(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """As `Executor.map`; ChildProcessError when workers die at the same task again and again."""
        waiting, running = deque[Any](), list[Any]()
        try:
            for task in tasks:
                if len(waiting) > self.num_workers:
                    yield _result(waiting[0])
                    running = [reference for reference in running if reference != waiting[0]]
                    waiting.popleft()
                while len(running) >= self.num_workers:
                    _, running = ray.wait(running, num_returns=1, fetch_local=False)
                waiting.append(_do.remote(function, task))
                running.append(waiting[-1])
            running.clear()  # what is referred to keeps its memory
            while waiting:
                yield _result(waiting[0])
                waiting.popleft()
        finally:
            _end(list(waiting))


@contextlib.contextmanager
def ray_executor(
    *, address: str | None, num_workers: int | None, memory_bytes: int, work_folder: str | None
) -> Iterator[RayExecutor]:
    """An executor on the Ray cluster at `address` or RAY_ADDRESS, or on one started here for the block.

    Args:
        address: of the cluster; None as above.
        num_workers: tasks at once; None for the CPUs of the cluster, or of this machine.
        memory_bytes: of one machine, as the module says.
        work_folder: for temporary files, as the user named it; None when they did not.

    Raises BadInput when the cluster cannot be reached, or has other machines and no folder that all of them see.
    """
    starts = named_cluster(address) is None and not ray.is_initialized()
    wanted = num_workers or os.cpu_count() or 1
    ray_bytes = RAY_BYTES if starts else 0
    if starts:  # Ray starts a process for every CPU it is told of
        room = memory_bytes - ray_bytes - PROCESS_BYTES - LEAST_OBJECT_BYTES
        wanted = max(1, min(wanted, room // (PROCESS_BYTES + LEAST_WORKER_BYTES)))
    rest = memory_bytes - ray_bytes - (wanted + 1) * PROCESS_BYTES
    objects = max(LEAST_OBJECT_BYTES, rest // 3)
    with ray_cluster(num_cpus=wanted, address=address, object_store_bytes=objects, environment=ENVIRONMENT):
        cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
        _check_work_folder(work_folder, nodes=[node for node, count in cpus.items() if count])
        total = max(1, sum(cpus.values()))
        workers = min(total, num_workers or total)
        here = min(workers, max(1, *cpus.values()))
        yield RayExecutor(
            workers,
            machine=MachineShare(
                num_workers=here,
                worker_bytes=PROCESS_BYTES,
                fixed_bytes=ray_bytes + LEAST_OBJECT_BYTES,
                copies_results=True,
            ),
        )


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _do(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)


@ray.remote(num_cpus=0, max_retries=RETRIES)
def _sees(path: str) -> bool:
    return os.path.exists(path)


def _result(reference: Any) -> Any:
    """What a task returned; what it raised as it was raised there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, Exception) and not isinstance(error.cause, RayError):
            raise error.cause from None
        raise
    except RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ChildProcessError(
            f"a task failed on Ray: {reason}; the same command goes on from its last finished stage"
        ) from error


def _end(references: list[Any]) -> None:
    """Stop tasks under way and wait until their processes have ended."""
    if not references:
        return
    # a task that has just ended must not be cancelled: Ray may still be taking note of its end, and aborts
    _, running = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
    for reference in running:
        ray.cancel(reference, force=True)
    if running:
        ray.wait(running, num_returns=len(running), fetch_local=False)


def _check_work_folder(folder: str | None, *, nodes: list[str]) -> None:
    """BadInput when tasks may run on other machines than this one, which do not see the temporary files."""
    here = ray.get_runtime_context().get_node_id()
    if all(node == here for node in nodes):
        return
    rule = "temporary files are written and read by all machines of the cluster"
    remedy = "name a folder on storage that all of them share, under the same path, with --work"
    if folder is None:
        raise BadInput("--work", f"not given, and Ray has {len(nodes)} machines", rule=rule, remedy=remedy)
    os.makedirs(folder, exist_ok=True)
    token = os.path.join(folder, f"hopstream-{uuid.uuid4().hex}")
    try:
        open(token, "w", encoding="ascii").close()
        seen = {
            node: _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(token)
            for node in nodes
        }
        for node, reference in seen.items():
            if not _result(reference):
                address = next(found["NodeManagerAddress"] for found in ray.nodes() if found["NodeID"] == node)
                raise BadInput(f"--work {folder}", f"not seen from {address}", rule=rule, remedy=remedy)
    finally:
        os.remove(token)
