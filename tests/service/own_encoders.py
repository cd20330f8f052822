"""Encoders as users write them, and what is none; named by their import path in tests."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from service.encoders.hop_graph import HopGraph
from service.message_passing import mean
from service.schema import GraphSchema


class MeanEncoder(nn.Module):
    """Own state plus each relation's mean, through a map each."""

    def __init__(
        self, *, in_dim: int, hidden_dim: int, num_layers: int, schema: GraphSchema, slope: float = 0.2
    ) -> None:
        super().__init__()
        self.slope = slope
        widths = [in_dim, *[hidden_dim] * num_layers]
        self.own = nn.ModuleList(nn.Linear(*dims) for dims in pairwise(widths))
        self.neighbor = nn.ModuleList(
            nn.ModuleList(nn.Linear(*dims, bias=False) for _ in schema.relations) for dims in pairwise(widths)
        )

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor:
        out: Tensor = self.own[number](h[: hop.num_targets])
        maps = self.neighbor[number]
        assert isinstance(maps, nn.ModuleList)
        for relation in range(len(hop.relations)):
            out = out + maps[relation](mean(hop.edges(relation), h))
        return nn.functional.leaky_relu(out, self.slope)


class DglEncoder(nn.Module):
    """One SAGEConv a layer and relation."""

    def __init__(self, *, in_dim: int, hidden_dim: int, num_layers: int, schema: GraphSchema) -> None:
        super().__init__()
        from dgl.nn.pytorch import SAGEConv

        widths = [in_dim, *[hidden_dim] * num_layers]
        self.layers = nn.ModuleList(
            nn.ModuleList(SAGEConv(*dims, "mean") for _ in schema.relations) for dims in pairwise(widths)
        )

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor:
        convolutions = self.layers[number]
        assert isinstance(convolutions, nn.ModuleList)
        parts = [convolution(hop.block(place), h) for place, convolution in enumerate(convolutions)]
        return torch.relu(torch.stack(parts).sum(0))


class WrongShape(MeanEncoder):
    """Its rows are too narrow."""

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor:
        return super().layer(number, h, hop)[:, 1:]


class NoTensor(MeanEncoder):
    """It gives nothing."""

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> None:  # type: ignore[override]  # what is refused
        return None


class NoLayer(nn.Module):
    """A module without a layer."""

    def __init__(self, **settings: object) -> None:
        super().__init__()


class NoModule:
    """Not a module."""

    def __init__(self, **settings: object) -> None:
        """Takes what an encoder takes."""


class SkippingEncoder(MeanEncoder):
    """Passes over relations without edges, as users' code does."""

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor:
        out: Tensor = self.own[number](h[: hop.num_targets])
        maps = self.neighbor[number]
        assert isinstance(maps, nn.ModuleList)
        for relation in range(len(hop.relations)):
            if hop.edges(relation).source.numel():
                out = out + maps[relation](mean(hop.edges(relation), h))
        return out
