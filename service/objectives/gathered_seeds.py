"""The seeds of the global batch with their states, on every rank, and partners drawn among those of one type.

Seeds are put in the order of their ids before anything is drawn among them, so a draw depends on which seeds the global
batch has and neither on their order nor on how ranks share them.

Shapes: G seeds of the global batch, S of this rank, D columns of a state, P draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sampling.batch import MiniBatch
from service.group import Group
from service.noise import Noise, Site
from service.schema import GraphSchema
from storage.errors import BadInput


@dataclass(frozen=True, eq=False)
class GatheredSeeds:
    """All ranks' seeds, in rank order."""

    states: Tensor
    """[G, D]; a gradient goes to the rank that a row came from"""
    node_type: Tensor
    """int64 [G]"""
    node_id: Tensor
    """int64 [G]"""

    @classmethod
    def of(cls, states: Tensor, batch: MiniBatch, *, group: Group) -> "GatheredSeeds":
        """Gather `states` [S, D]; every rank of `group` must call it, and reach the backward pass."""
        rows, _ = group.gather(states)
        named = torch.stack([batch.node_type[: batch.num_seeds], batch.node_id[: batch.num_seeds]], dim=1)
        named = group.gather_rows(named)
        return cls(states=rows, node_type=named[:, 0], node_id=named[:, 1])

    def of_type(self, node_type: int) -> Tensor:
        """int64 [G_t]: rows of the seeds of one type, by ascending id."""
        rows = (self.node_type == node_type).nonzero().squeeze(1)
        return rows[self.node_id[rows].argsort(stable=True)]

    def draw(self, keys: Tensor, node_type: int, *, noise: Noise, site: Site, number: int = 0) -> Tensor:
        """int64 [P]: for each of the keys [P] the row of a seed of `node_type`; -1 where the batch has none.

        Args:
            number: of the draw, where a key draws several times.
        """
        rows = self.of_type(node_type)
        if not rows.shape[0]:
            return torch.full_like(keys, -1)
        return rows[noise.partners(keys, rows.shape[0], view=number, site=site)]


def check_sources_are_seeds(schema: GraphSchema, seed_types: Sequence[str], *, objective: str) -> None:
    """Raise BadInput where a relation into seeds has sources that never are seeds: it would have no negatives."""
    for relation in schema.relations:
        source, target = (schema.node_types[end].name for end in (relation.source_type, relation.target_type))
        if target in seed_types and source not in seed_types:
            raise BadInput(
                f"data.seed_types={list(seed_types)}",
                f"sources of {relation.name} are no seeds",
                rule=f"{objective} draws what takes a source's place from the seeds of its type, or all pairs would be "
                "edges",
                remedy=f"add {source} to data.seed_types, or leave it out for all types",
            )
