"""The sampled in-neighbours under one relation, as the message-passing primitives read them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from service.message_passing import dgl_kernels

Kernels = Literal["auto", "dgl", "torch"]


@dataclass(frozen=True, eq=False)
class Neighbors:
    """A bipartite graph in CSC: edges into target t are `source[indptr[t]:indptr[t + 1]]`.

    Shapes: T targets, S sources, E edges. A target without edges is allowed, and so are T, S or E of 0.
    """

    num_sources: int
    indptr: Tensor
    """int32 [T + 1]"""
    source: Tensor
    """int32 [E]"""
    weight: Tensor | None = None
    """float32 [E], not differentiated; None means 1 everywhere"""
    kernels: Kernels = "auto"
    """who runs the primitives: dgl where it can ("auto"), always dgl, always torch"""

    @property
    def num_targets(self) -> int:
        """T."""
        return self.indptr.shape[0] - 1

    @property
    def num_edges(self) -> int:
        """E."""
        return self.source.shape[0]

    @cached_property
    def num_in_edges(self) -> Tensor:
        """int64 [T]: edges into each target."""
        return (self.indptr[1:] - self.indptr[:-1]).long()

    @cached_property
    def target(self) -> Tensor:
        """int64 [E]: the target of each edge."""
        rows = torch.arange(self.num_targets, device=self.indptr.device)
        return torch.repeat_interleave(rows, self.num_in_edges, output_size=self.num_edges)

    @cached_property
    def runs_dgl(self) -> bool:
        """Whether DGL runs these edges; graphs without an edge never reach it."""
        if self.num_edges == 0 or self.kernels == "torch":
            return False
        return self.kernels == "dgl" or dgl_kernels.is_available(self.source.device.type)

    @cached_property
    def block(self) -> Any:
        """The same edges as a DGL block, made once."""
        return dgl_kernels.make_block(self.indptr, self.source, self.num_sources)
