"""Decoders of node pairs: from the states of both ends to the logit of an edge between them.

Shapes: P pairs, D columns of a state.
"""

from typing import Literal

from torch import Tensor, nn

from service.group import Group
from service.objectives.heads import Head

DecoderName = Literal["mlp", "dot"]


class DotDecoder(nn.Module):
    """The inner product of both states (Kipf and Welling, "Variational graph auto-encoders", 2016, eq. 2)."""

    def forward(self, products_PD: Tensor, family_P: Tensor) -> Tensor:
        """[P]: logits."""
        return products_PD.sum(1)


class HadamardMlp(nn.Module):
    """A network of one hidden layer on the product of both states, one for each family of relations.

    The product is the same both ways, so a relation and its reverse share a network.
    Source: MaskGAE (Li et al., KDD 2023), section 4.3.
    """

    def __init__(self, in_dim: int, hidden_dim: int, *, families: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {str(family): Head(in_dim, hidden_dim, 1, activation="relu") for family in sorted(set(families))}
        )

    def forward(self, products_PD: Tensor, family_P: Tensor) -> Tensor:
        """[P]: logits; hangs on every network, also on those of families without a pair."""
        logits = products_PD.sum(1) * 0.0
        for family, head in self.heads.items():
            rows = (family_P == int(family)).nonzero().squeeze(1)
            decoded = head(products_PD[rows], num_seeds=0, group=Group()).squeeze(1)
            logits = logits.index_add(0, rows, decoded.to(logits.dtype))
        return logits


PairDecoder = DotDecoder | HadamardMlp


def make_pair_decoder(name: DecoderName, *, in_dim: int, hidden_dim: int, families: tuple[int, ...]) -> PairDecoder:
    """The decoder called `name`; `hidden_dim` is mlp's."""
    match name:
        case "dot":
            return DotDecoder()
        case "mlp":
            return HadamardMlp(in_dim, hidden_dim, families=families)
