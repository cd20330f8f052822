"""A pretrained encoder with a head that classifies: what finetuning trains.

Shapes: S seeds of a batch, D columns of the encoder's output, C classes.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders import Encoder
from service.encoders.nodes import Nodes
from service.feature_values import FeatureValues
from service.finetune_section import FinetuneSection
from service.group import Group
from service.noise import Noise
from service.objectives.seeds import encode_seeds, full_precision
from service.run_file import RunFile
from service.views import ViewConfig, make_view


class Classifier(nn.Module):
    """Encoder and head; tensors below `encoder.` and `head.`.

    A frozen encoder is computed without gradient, without dropout and with the statistics of evaluation, so nothing of
    it changes.
    """

    def __init__(self, encoder: Encoder, head: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.values = FeatureValues(encoder.schema)
        self.encoder = encoder
        self.head = head
        self.frozen = frozen
        encoder.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        """As torch has it; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, batch: MiniBatch, noise: Noise | None) -> Tensor:
        """Logits [S, C] of the batch's seeds, at least float32; `noise` None means no dropout."""
        batch = self.values(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states_SD = encode_seeds(
                self.encoder,
                make_view(batch, ViewConfig(), noise=None, view=0, dtype=self.encoder.dtype),  # the batch as it is
                batch,
                Nodes.of(batch, kernels=self.encoder.config.kernels),
                noise=None if self.frozen else noise,
                group=Group(),
                number=0,
            )
        logits: Tensor = self.head(full_precision(states_SD))
        return full_precision(logits)


def make_head(dim: int, num_classes: int) -> nn.Module:
    """Layer norm, which makes the scale of states indifferent, and one linear map."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))


def build_classifier(run: RunFile, encoder: Encoder, *, num_classes: int) -> Classifier:
    """A classifier on `encoder` with a head of fresh weights; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.finetune.seed)
        head = make_head(encoder.config.out_dim, num_classes)
    return Classifier(encoder, head, frozen=run.finetune.freeze)


def finetune_optimizer(classifier: Classifier, section: FinetuneSection) -> torch.optim.Optimizer:
    """AdamW with a learning rate for the head and one for the encoder, where that is trained."""
    groups: list[dict[str, Any]] = [{"params": list(classifier.head.parameters()), "lr": section.learning_rate}]
    encoder = [parameter for parameter in classifier.encoder.parameters() if parameter.requires_grad]
    if encoder:
        groups.append({"params": encoder, "lr": section.encoder_learning_rate})
    return torch.optim.AdamW(groups, weight_decay=section.weight_decay)
