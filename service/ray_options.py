"""The options of commands whose tasks Ray may do, and the executor that they ask for."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from storage.errors import BadInput
from storage.progress import Progress

if TYPE_CHECKING:
    from storage.ingest_settings import IngestResources
    from storage.stages.executor import Executor

OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Do the tasks on Ray: the cluster of --address or RAY_ADDRESS, else one started here; --workers is then "
        "its CPUs by default. --memory is that of one machine: 256 MiB for this process and 256 MiB for each worker's, "
        "384 MiB for Ray itself where it is started here, 80 MiB and a third of the rest for results that wait, what "
        "is left for the tasks; at least 1 GiB. A cluster of several machines needs --work on storage that all share.",
    ),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join with --ray, as HOST:PORT.")]


@contextlib.contextmanager
def chosen_executor(
    *, ray: bool, address: str | None, workers: int | None, resources: "IngestResources", progress: Progress
) -> "Iterator[Executor | None]":
    """Who does the tasks: Ray, or None for threads of this process, which then never pays for importing Ray.

    Args:
        ray, address: as the options.
        workers: as the option; None when it was not given.
        resources: of the command.
        progress: told that Ray is started.

    Raises BadInput as `service.ray_executor.ray_executor`, and for an address without `--ray`.
    """
    if not ray:
        if address is not None:
            raise BadInput(
                f"--address {address}",
                "without --ray",
                rule="it names the Ray cluster that does the tasks",
                remedy="give --ray as well, or leave it out",
            )
        yield None
        return
    from service.ray_executor import ray_executor

    progress.stage("start Ray", total=1, unit="clusters")
    with ray_executor(
        address=address,
        num_workers=workers,
        memory_bytes=resources.memory_bytes,
        work_folder=resources.work_folder,
    ) as executor:
        progress.advance(1)
        yield executor
