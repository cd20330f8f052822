"""Views: augmented copies of a batch that share its one fetch of features.

A view is one graph: an edge that it drops is gone from every hop, and a feature column that it drops is zero at every
node, as in the public code of GRACE, BGRL and CCA-SSG. What is dropped is keyed by (step, view, edge or column), so all
ranks see the same views of the global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sampling.batch import Hop, MiniBatch
from sampling.masks import node_keys
from service.encoders.nodes import drop_edges
from service.noise import Noise, Site


class ViewConfig(BaseModel):
    """How one view differs from the batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edge_drop: float = Field(0.2, ge=0.0, lt=1.0, description="share of the sampled edges that the view lacks")
    feature_drop: float = Field(0.2, ge=0.0, lt=1.0, description="share of the feature columns that are zero in it")


@dataclass(frozen=True, eq=False)
class View:
    """One view of a batch."""

    features: tuple[Tensor | None, ...]
    """one per type: [N_t, F_t] in the encoder's dtype; None where a type has none"""
    hops: tuple[Hop, ...]
    """from the seeds outward"""


def make_view(batch: MiniBatch, config: ViewConfig, *, noise: Noise | None, view: int, dtype: torch.dtype) -> View:
    """View number `view` of `batch`; without noise the batch itself."""
    tables = tuple(None if table is None else table.to(dtype) for table in batch.features)
    if noise is None:
        return View(tables, batch.hops)
    salt = noise.salt(view=view, layer=0, site=Site.VIEW_EDGE)
    hops = tuple(drop_edges(hop, rate=config.edge_drop, salt=salt) for hop in batch.hops)
    return View(drop_columns(tables, rate=config.feature_drop, noise=noise, view=view), hops)


def drop_columns(tables: Sequence[Tensor | None], *, rate: float, noise: Noise, view: int) -> tuple[Tensor | None, ...]:
    """Each table with a keyed share of its columns zeroed; they are not scaled, as in the public code."""
    if rate == 0.0:
        return tuple(tables)
    dropped: list[Tensor | None] = []
    for kind, table in enumerate(tables):
        if table is None:
            dropped.append(None)
            continue
        columns = torch.arange(table.shape[1], device=table.device)
        keys = node_keys(torch.full_like(columns, kind), columns)
        gone = noise.select(keys, rate, view=view, site=Site.VIEW_COLUMN)
        dropped.append(table.masked_fill(gone, 0.0))
    return tuple(dropped)
