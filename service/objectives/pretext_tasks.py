"""Pretext tasks: figures of a seed's place in the graph and of its features, predicted from its state.

Shapes: S seeds of this rank, S_t of type t, G_t of all ranks, D columns of a state, R relations, F_t feature columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sampling.batch import MiniBatch
from service.encoders.convolution import linear
from service.group import Group
from service.noise import Noise, Site
from service.objectives.gathered_seeds import GatheredSeeds
from service.objectives.online_clusters import OnlineClusters
from service.schema import GraphSchema


@dataclass(frozen=True, eq=False)
class SeedRows:
    """Seeds of this rank as tasks see them."""

    batch: MiniBatch
    states: Tensor
    """[S, D]"""
    keys: Tensor
    """int64 [S]: of the nodes"""
    features: Mapping[int, Tensor]
    """by type: unit rows [S_t, F_t], in batch order"""

    def of_type(self, kind: int) -> Tensor:
        """int64 [S_t]: rows of the seeds of a type."""
        return (self.batch.node_type[: self.batch.num_seeds] == kind).nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class TaskSum:
    """One rank's part of a task's loss, which is all ranks' sums over all ranks' counts."""

    loss_sum: Tensor
    count: int


class DegreeTask(nn.Module):
    """Squared error of log(1 + degree) in the whole graph, averaged over the relations that a seed's type is part of.

    In- and out-degrees are told apart. A seed of a type in no relation has error 0.
    """

    def __init__(self, width: int, *, schema: GraphSchema) -> None:
        super().__init__()
        into = [relation.target_type for relation in schema.relations]
        out_of = [relation.source_type for relation in schema.relations]
        self.owners = (*into, *out_of)
        """[2R]: the type whose nodes have each degree"""
        self.head = linear(width, 2 * len(schema.relations), bias=True)

    def forward(self, seeds: SeedRows, *, noise: Noise | None, group: Group) -> TaskSum:
        """Over all seeds."""
        batch, num_seeds = seeds.batch, seeds.batch.num_seeds
        degree = torch.cat([batch.in_degree[:, :num_seeds], batch.out_degree[:, :num_seeds]])
        predicted = self.head(seeds.states).to(seeds.states.dtype)
        owners = torch.tensor(self.owners, dtype=torch.int64, device=predicted.device)
        valid = batch.node_type[:num_seeds, None] == owners
        error = (predicted - degree.T.to(predicted.dtype).log1p()).square().masked_fill(~valid, 0.0)
        return TaskSum((error.sum(1) / valid.sum(1).clamp(min=1)).sum(), num_seeds)


class ClusterTask(nn.Module):
    """Cross entropy of the cluster that a seed's features fall in; clusters follow the training batches.

    A seed's label is the nearest centroid before the batch moves it. Types without features have no labels.
    """

    def __init__(self, width: int, *, dims: Mapping[int, int], num_clusters: int) -> None:
        super().__init__()
        self.clusters = nn.ModuleDict({str(kind): OnlineClusters(num_clusters, dim) for kind, dim in dims.items()})
        self.heads = nn.ModuleDict({str(kind): linear(width, num_clusters, bias=True) for kind in dims})

    def forward(self, seeds: SeedRows, *, noise: Noise | None, group: Group) -> TaskSum:
        """Over the seeds with features; evaluation and `eval()` move no centroid."""
        sums, count = [], 0
        for name, clusters in self.clusters.items():
            assert isinstance(clusters, OnlineClusters)
            kind = int(name)
            rows, features = seeds.of_type(kind), seeds.features[kind]
            is_moving = self.training and noise is not None
            if noise is not None and is_moving:
                clusters.fill(features, seeds.keys[rows], noise=noise, group=group)
            labels = clusters.assign(features)
            if is_moving:
                clusters.update(features, labels, group=group)
            logits = self.heads[name](seeds.states[rows]).to(seeds.states.dtype)
            sums.append(cross_entropy(logits, labels, reduction="sum"))
            count += rows.shape[0]
        return TaskSum(torch.stack(sums).sum(), count)


class SimilarityTask(nn.Module):
    """Squared error of the cosine between the features of two seeds of one type, from the product of their states.

    Each seed with features draws its partners by key from the global batch; a draw of itself is left out.
    """

    def __init__(self, width: int, *, dims: Mapping[int, int], num_pairs: int) -> None:
        super().__init__()
        self.num_pairs = num_pairs
        self.heads = nn.ModuleDict({str(kind): linear(width, 1, bias=True) for kind in dims})

    def forward(self, seeds: SeedRows, *, noise: Noise | None, group: Group) -> TaskSum:
        """Over the pairs; every rank of `group` must call it."""
        everyone = GatheredSeeds.of(seeds.states, seeds.batch, group=group)
        sums, count = [], 0
        for name, head in self.heads.items():
            kind = int(name)
            rows = seeds.of_type(kind)
            own, own_id = seeds.features[kind], seeds.batch.node_id[rows]
            theirs = group.gather_rows(own)
            place = (everyone.node_type == kind).cumsum(0) - 1
            for number in range(self.num_pairs):
                chosen = everyone.draw(
                    seeds.keys[rows], kind, noise=noise or Noise(0), site=Site.PARTNER, number=number
                )
                kept = (everyone.node_id[chosen] != own_id).nonzero().squeeze(1)
                chosen = chosen[kept]
                product = seeds.states[rows[kept]] * everyone.states[chosen]
                cosine = (own[kept] * theirs[place[chosen]]).sum(1)
                predicted = head(product).squeeze(1).to(cosine.dtype)
                sums.append((predicted - cosine).square().sum())
                count += kept.shape[0]
        return TaskSum(torch.stack(sums).sum(), count)
