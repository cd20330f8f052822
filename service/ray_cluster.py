"""Ray for the length of a command: the cluster that is named, or one started on this machine and stopped again."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from storage.errors import BadInput

NAMESPACE = "hopstream"
REACH_SECONDS = 10.0


def named_cluster(address: str | None = None) -> str | None:
    """The cluster to join: `address`, or what RAY_ADDRESS says; None to start one."""
    return address or os.environ.get("RAY_ADDRESS") or None


@contextlib.contextmanager
def ray_cluster(
    *,
    num_cpus: int,
    address: str | None = None,
    object_store_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Connected to Ray inside the block; a connection that is there already is used and left as it is.

    What is printed inside goes to the error stream.

    Args:
        num_cpus: of a cluster that is started.
        address: of the cluster to join; None for RAY_ADDRESS, and where that is not set for a new one.
        object_store_bytes: memory for objects of a cluster that is started; None for Ray's choice.
        environment: variables of the processes that Ray starts for us.

    Raises BadInput when the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if environment is not None:
        options["runtime_env"] = {"env_vars": dict(environment)}
    where = named_cluster(address)
    if where is None:
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            **options,
        )
    else:
        try:
            _reach(where)
            ray.init(address=where, **options)
        except (OSError, ValueError) as error:
            raise BadInput(
                f"--address {where}" if address else f"RAY_ADDRESS={where}",
                " ".join(str(error).split())[:200],
                rule="it names a Ray cluster that runs",
                remedy="correct it, or leave it out to start Ray on this machine",
            ) from error
    # Ray prints what happens to tasks on the output, where a command's result goes
    with contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            ray.shutdown()


def _reach(address: str) -> None:
    """OSError where nobody listens at HOST:PORT; Ray would find that out in five minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
