"""One hop as a user's own encoder reads it: plain tensors, or a DGL block."""

from functools import cached_property
from typing import Any

from torch import Tensor

from sampling.batch import Hop
from service.encoders.nodes import Nodes
from service.message_passing import Neighbors, dgl_kernels
from service.schema import GraphSchema
from storage.errors import BadInput


class HopGraph:
    """The sampled edges of a hop, relation by relation; rows [0, num_targets) of h are targets, all rows sources.

    Shapes: n_s sources, n_t targets, R relations, E edges under one relation.
    """

    def __init__(self, hop: Hop, nodes: Nodes, *, schema: GraphSchema) -> None:
        self.num_sources = hop.num_sources
        self.num_targets = hop.num_targets
        self.relations = tuple(relation.name for relation in schema.relations)
        self._hop = hop
        self._nodes = nodes
        self._edges: dict[int, Neighbors] = {}

    @cached_property
    def node_type(self) -> Tensor:
        """int64 [n_s]: number of each source's type."""
        return self._nodes.node_type[: self.num_sources]

    @cached_property
    def in_degree(self) -> Tensor:
        """int32 [R, n_s]: in the whole graph."""
        return self._nodes.in_degree[:, : self.num_sources]

    @cached_property
    def out_degree(self) -> Tensor:
        """int32 [R, n_s]: in the whole graph."""
        return self._nodes.out_degree[:, : self.num_sources]

    def edges(self, relation: int = 0) -> Neighbors:
        """The edges under a relation in CSC by target: `indptr` [n_t + 1], `source` [E], `target` [E], `weight`.

        `service.message_passing` (mean, sum_neighbors, maximum, attend) runs on them.
        """
        if relation not in self._edges:
            hop = self._hop
            first, last = int(hop.indptr[relation, 0]), int(hop.indptr[relation, -1])
            self._edges[relation] = Neighbors(
                num_sources=hop.num_sources,
                indptr=(hop.indptr[relation] - first).int(),
                source=hop.source[first:last].int(),
                weight=None if hop.weight is None else hop.weight[first:last],
                kernels=self._nodes.kernels,
            )
        return self._edges[relation]

    def block(self, relation: int = 0) -> Any:
        """The same edges as a DGL block, which DGL's modules take in place of a graph; weights are edata["weight"].

        Raises BadInput where DGL does not load.
        """
        if reason := dgl_kernels.why_not(self._hop.source.device.type):
            raise BadInput(
                "package dgl",
                f"it does not load here ({reason})",
                rule="an encoder that asks for DGL blocks needs it",
                remedy="install dgl==1.1.3 on Python 3.11, or use HopGraph.edges",
            )
        edges = self.edges(relation)
        block = edges.block
        if edges.weight is not None and "weight" not in block.edata:
            block.edata["weight"] = edges.weight
        return block
