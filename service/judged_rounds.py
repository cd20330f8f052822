"""The loop that finetuning and distillation share: round after round, each judged, until the last or patience ends it.

It goes on where its folder stands (`service.finetune_rounds`) and keeps the weights of the best round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from service.checkpoint import restore_optimizer
from service.finetune_rounds import Round, best_round, copy_state, has_stopped, load_rounds, save_rounds
from service.interrupts import Interrupts
from storage.place import Place
from storage.progress import Progress


@dataclass(frozen=True)
class RoundLimits:
    """When rounds end, and how often they are saved."""

    num_rounds: int
    patience: int
    checkpoint_every: int


class JudgedRounds:
    """Rounds in a folder.

    Args:
        section: of the run file that names the folder, for messages.
        binding: what the rounds depend on, as JSON has it.
        model: with its first weights; it is given those that the folder has, as is `optimizer`.
        check: asked before anything is written; raises when this process may no longer work in `place`.

    Raises BadInput when `place` holds rounds of another `binding`, DamagedStore when they cannot be read.
    """

    def __init__(
        self,
        place: Place,
        *,
        section: str,
        binding: Mapping[str, Any],
        limits: RoundLimits,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        check: Callable[[], None],
    ) -> None:
        self._place, self._binding, self._limits = place, binding, limits
        self._model, self._optimizer, self._check = model, optimizer, check
        self.rounds: list[Round] = []
        self.best = copy_state(model)
        """weights after the best round, on the CPU"""
        saved = load_rounds(place, binding=binding, section=section)
        if saved is not None:
            model.load_state_dict(saved.model)
            restore_optimizer(model, optimizer, saved.optimizer)
            self.rounds, self.best = list(saved.rounds), saved.best

    @property
    def over(self) -> bool:
        """Whether all rounds are done, or enough of them without a better one."""
        return len(self.rounds) >= self._limits.num_rounds or has_stopped(self.rounds, patience=self._limits.patience)

    def train(self, one_round: Callable[[int], Round], *, name: str, unit: str, progress: Progress) -> None:
        """Go on to the end; `one_round` trains and judges the round of a number, from 0."""
        progress.stage(name, total=self._limits.num_rounds, unit=unit)
        progress.advance(len(self.rounds))
        with Interrupts() as interrupts:
            while not self.over:
                self.rounds.append(one_round(len(self.rounds)))
                if best_round(self.rounds) == len(self.rounds) - 1:
                    self.best = copy_state(self._model)
                if self.over or len(self.rounds) % self._limits.checkpoint_every == 0:
                    self._check()
                    save_rounds(
                        self._place,
                        binding=self._binding,
                        rounds=self.rounds,
                        model=self._model,
                        best=self.best,
                        optimizer=self._optimizer,
                    )
                progress.advance(1)
                if not self.over:
                    interrupts.check()
