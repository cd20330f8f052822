"""Stages of a pipeline, each in a thread of its own, joined by channels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

from sampling.channel import Channel, ChannelClosed


@dataclass(frozen=True)
class Stage:
    """One stage: `work` takes from `given` until it ends, and puts into `out`."""

    work: Callable[[], None]
    given: Channel[Any] | None
    out: Channel[Any]


@contextmanager
def running(stages: list[Stage], *, wake: Callable[[], None]) -> Iterator[None]:
    """Run the stages inside a `with` block; leaving it stops them all, wherever they are.

    Args:
        wake: frees stages that wait for something other than a channel.
    """
    threads = [Thread(target=_run, args=(stage,), name="hopstream-stage", daemon=True) for stage in stages]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for stage in stages:
            stage.out.close()
        wake()
        for thread in threads:
            thread.join()


def _run(stage: Stage) -> None:
    """One stage's thread: its end or its error goes on to the next stage, its going to the one before."""
    error: BaseException | None = None
    try:
        with suppress(ChannelClosed):
            stage.work()
    except BaseException as raised:  # handed to whoever reads the stream
        error = raised
    if stage.given is not None:
        stage.given.close()
    stage.out.end(error)
