"""The pretext task `partition`: in which part of the graph a seed is, as found before training (`service.partition`).

Shapes: N nodes over all types, by global id; T node types, S seeds of this rank, D columns of a state, K parts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from service.encoders.convolution import linear
from service.group import Group
from service.noise import Noise
from service.objectives.pretext_tasks import SeedRows, TaskSum


@dataclass(frozen=True, eq=False)
class NodeParts:
    """The part of every node of a graph. It stays in host memory, wherever the model is."""

    part: Tensor
    """int32 [N], below 0 for nodes in none"""
    type_offsets: Tensor
    """int64 [T + 1]: global id of the first node of each type"""

    def of(self, node_type: Tensor, node_id: Tensor) -> Tensor:
        """int64 [n] on the device of the nodes, from their types and dense ids, int64 [n] each."""
        rows = self.type_offsets[node_type.cpu()] + node_id.cpu()
        return self.part[rows].to(device=node_type.device, dtype=torch.int64)


class PartitionTask(nn.Module):
    """Cross entropy of the part that a seed is in, from a linear map of its state; one map for all types.

    Seeds in no part have no loss. Parts are no state of the model: they are of the store's generation, and whoever
    trains the model sets `parts` first.
    """

    def __init__(self, width: int, *, num_parts: int) -> None:
        super().__init__()
        self.num_parts = num_parts
        self.parts: NodeParts | None = None
        self.head = linear(width, num_parts, bias=True)

    def forward(self, seeds: SeedRows, *, noise: Noise | None, group: Group) -> TaskSum:
        """Over the seeds that are in a part."""
        assert self.parts is not None, "whoever trains knows the parts (service.partition_file)"
        batch = seeds.batch
        part = self.parts.of(batch.node_type[: batch.num_seeds], batch.node_id[: batch.num_seeds])
        rows = (part >= 0).nonzero().squeeze(1)
        logits = self.head(seeds.states[rows]).to(seeds.states.dtype)
        return TaskSum(cross_entropy(logits, part[rows], reduction="sum"), rows.shape[0])
