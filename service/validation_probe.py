"""Probes of a run in the background: weights are copied at a step, the figure arrives at a later one.

    step s      rank 0 copies the encoder's weights                                  begin
                a thread embeds labelled nodes and fits a linear probe               service.probed_nodes
    step s + n  all ranks have the figure; rank 0 waits where it is not there        arrive

A checkpoint in between holds the figure, so its writer waits for it; one at step s itself needs none, as the probe
begins again from its weights. So checkpoints at multiples of n cost no wait, and a resumed run has the figures of a
whole one.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from service.group import Group
from service.preparation import Preparation
from service.probe import one_blas_thread
from service.probe_schedule import ProbeFigure, arriving, begins
from service.probed_nodes import EncoderProbe
from service.run_file import RunFile
from storage.progress import Progress

Compute = Callable[[Mapping[str, Tensor]], float]
"""accuracy by the weights of an encoder"""


class ValidationProbe:
    """The probes of one run; every rank has one, rank 0's computes.

    Args:
        every_steps: see `ValidationProbeConfig`; None for no probes.
        total_steps: of the run.
        compute: of rank 0, called in a thread; None on others.
        group: the ranks that train together.
        device: of the training, for what crosses ranks.
        known: the figure that the checkpoint gone on from has.
    """

    def __init__(
        self,
        *,
        every_steps: int | None,
        total_steps: int,
        compute: Compute | None,
        group: Group,
        device: torch.device,
        known: ProbeFigure | None = None,
    ) -> None:
        assert every_steps is None or (compute is not None) == (group.rank == 0)
        self.wait_seconds = 0.0
        """waited for the figure that arrived last"""
        self._every_steps = every_steps
        self._total_steps = total_steps
        self._compute = compute
        self._group = group
        self._device = device
        self._known = known
        self._computing: tuple[int, Future[float]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hopstream-probe")

    def begin(self, step: int, encoder: nn.Module) -> None:
        """Probe the weights that `encoder` has after `step` steps, where a probe begins there."""
        if self._compute is None or not begins(step, every_steps=self._every_steps, total_steps=self._total_steps):
            return
        assert self._computing is None, "one probe at a time"
        # on the CPU a tensor of a state is the parameter's own memory, which the next step changes
        weights = {name: value.detach().to("cpu", copy=True) for name, value in encoder.state_dict().items()}
        self._known = None
        self._computing = step, self._thread.submit(self._compute, weights)

    def arrive(self, step: int) -> ProbeFigure | None:
        """The figure that is used when `step` steps are done, on every rank, which all call it; None where none is.

        Raises what computing it raised.
        """
        probed = arriving(step, every_steps=self._every_steps)
        if probed is None:
            return None
        accuracy = torch.zeros(1, dtype=torch.float64, device=self._device)
        if self._compute is not None:
            began = time.monotonic()
            accuracy += self._finished(probed).accuracy
            self.wait_seconds = time.monotonic() - began
            self._known = None
        return ProbeFigure(probed, float(self._group.sum(accuracy)))

    def under_way(self, step: int) -> ProbeFigure | None:
        """The figure that a checkpoint of rank 0 at `step` has to hold; waits for it."""
        probed = self._known.step if self._computing is None and self._known is not None else None
        if self._computing is not None:
            probed = self._computing[0]
        return None if probed is None or probed == step else self._finished(probed)

    def close(self) -> None:
        """Stop the thread; a probe under way is finished and thrown away."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _finished(self, probed: int) -> ProbeFigure:
        """The figure of the probe of step `probed`, of which there is one under way or known."""
        if self._computing is not None:
            step, future = self._computing
            self._known = ProbeFigure(step, future.result())
            self._computing = None
        assert self._known is not None
        assert self._known.step == probed
        return self._known


def open_probe(
    run: RunFile,
    prepared: Preparation,
    *,
    known: ProbeFigure | None,
    group: Group,
    device: torch.device,
    opened: ExitStack,
    progress: Progress,
) -> ValidationProbe:
    """The probes that a run file asks for, closed by `opened`.

    Called before memory is divided, so that what rank 0 keeps of the probed nodes counts as the process's own. Raises
    BadInput where the store has no labels to probe.
    """
    config = run.training.probe
    compute: Compute | None = None
    if config.every_steps is not None and group.rank == 0:
        compute = EncoderProbe(run, prepared, device=device, progress=progress)
        # for the whole run and not in the thread: both settings are the process's
        opened.enter_context(one_blas_thread())
    probe = ValidationProbe(
        every_steps=config.every_steps,
        total_steps=prepared.total_steps,
        compute=compute,
        group=group,
        device=device,
        known=known,
    )
    opened.callback(probe.close)
    return probe
