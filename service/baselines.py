"""What an embedding has to beat, computed on the same store for the same rows.

    raw           the node's own features
    sgc           features averaged over two hops: no weights, no training
    random_init   the same encoder with fresh weights

Each gives the rows that the probe asks for, and only those are held. Trivial baselines are strong: SGC alone
reaches 82 on Cora, and several published methods fall below random weights when trained on mini-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.batch import MiniBatch
from service.chunks import Chunk, ChunkLimits
from service.embedding import EncoderStack
from service.encoders.base import Encoder
from service.feature_values import FeatureValues, as_values
from service.layerwise import LayerStack, run_layers
from service.message_passing import Neighbors, sum_neighbors
from storage.features import Features, StoredFeatures
from storage.graph import Topology
from storage.place import Place
from storage.progress import Progress

SGC_HOPS = 2
ROWS_PER_READ = 16384
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Machinery:
    """What the layer-wise machinery needs to run over a store (see `service.layerwise.run_layers`)."""

    topology: Topology
    features: Sequence[StoredFeatures | None]
    values: FeatureValues
    work: Place
    cache_bytes: int
    limits: ChunkLimits
    device: torch.device
    progress: Progress

    def rows_of(self, stack: LayerStack, *, rows: Sequence[NDArray[np.int64]], name: str) -> list[NDArray[np.float32]]:
        """The last layer's rows [len(rows[t]), D] for the ascending dense ids `rows[t]` of each type t."""
        pieces: list[list[NDArray[np.float32]]] = [[] for _ in rows]

        def keep(chunk: Chunk, piece: NDArray[np.float32]) -> None:
            pieces[chunk.node_type].append(piece)

        run_layers(
            stack,
            topology=self.topology,
            features=self.features,
            values=self.values,
            work=self.work,
            cache_bytes=self.cache_bytes,
            limits=self.limits,
            device=self.device,
            progress=self.progress,
            name=name,
            sink=keep,
            rows=rows,
        )
        return [np.concatenate(kept) if kept else np.empty((0, 0), np.float32) for kept in pieces]


def raw_rows(
    table: Features, *, scale: tuple[float, ...] | None, rows: NDArray[np.int64], name: str, progress: Progress
) -> NDArray[np.float32]:
    """Features [len(rows), F] of the type `name` as float32; `scale` [F] of quantised ones."""
    progress.stage(f"read {name}, raw", total=rows.shape[0], unit="rows")
    out = np.empty((rows.shape[0], table.dim), dtype=np.float32)
    for start in range(0, rows.shape[0], ROWS_PER_READ):
        some = rows[start : start + ROWS_PER_READ]
        found = np.empty((some.shape[0], table.dim), dtype=table.dtype)
        table.gather(some, found)
        out[start : start + ROWS_PER_READ] = as_values(found, scale=scale)
        progress.advance(some.shape[0])
    return out


def sgc_rows(machinery: Machinery, *, rows: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
    """Two hops of normalised neighbourhood sums of raw features [len(rows[t]), F_t], for the rows of each type t.

    Types whose features are equally wide are summed together, over all relations between them; features of
    another width cannot be. Types for which rows are wanted must have features.
    """
    found = [np.empty((0, 0), dtype=np.float32) for _ in rows]
    widths = [None if table is None else table.dim for table in machinery.features]
    for width in sorted({width for width, wanted in zip(widths, rows, strict=True) if width and wanted.size}):
        part = [node_type for node_type, other in enumerate(widths) if other == width]
        tables = [table if index in part else None for index, table in enumerate(machinery.features)]
        wanted = [ids if index in part else NONE for index, ids in enumerate(rows)]
        stack = SgcStack(machinery.topology, node_types=part, dim=width)
        summed = replace(machinery, features=tables).rows_of(stack, rows=wanted, name="sgc")
        for node_type in part:
            found[node_type] = summed[node_type]
    return found


def random_rows(
    machinery: Machinery, encoder: Encoder, *, rows: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Embeddings of an encoder as it is, for the rows of each type."""
    stack = EncoderStack(encoder, device=machinery.device)
    return machinery.rows_of(stack, rows=rows, name="random init")


class SgcStack:
    """SGC's propagation: h'_v = sum over u in N(v) and v of h_u / sqrt((in_v + 1)(out_u + 1)).

    Degrees count the edges of all relations between the types that take part; on an undirected graph this is
    D^-1/2 (A + I) D^-1/2. Edge weights play no part.
    Source: Wu et al., "Simplifying graph convolutional networks", ICML 2019, section 2.2.

    Args:
        topology: the graph.
        node_types: numbers of the types that take part.
        dim: columns of their features.
    """

    def __init__(self, topology: Topology, *, node_types: Sequence[int], dim: int) -> None:
        self._node_types = node_types
        self._dim = dim
        self._relations = [
            index
            for index, relation in enumerate(topology.relations)
            if relation.source_type in node_types and relation.target_type in node_types
        ]

    @property
    def num_layers(self) -> int:
        """Two, as published."""
        return SGC_HOPS

    @property
    def has_input_pass(self) -> bool:
        """Raw features are read as they are."""
        return False

    def input(self, batch: MiniBatch) -> Tensor:
        """[N, F]: features as float32; 0 for types that take no part."""
        if len(batch.features) == 1:
            only = batch.features[0]
            assert only is not None
            return only.float()
        joined = torch.zeros((batch.node_type.shape[0], self._dim), device=batch.node_type.device)
        for node_type in self._node_types:
            table = batch.features[node_type]
            assert table is not None
            joined[batch.node_type == node_type] = table.float()
        return joined

    def layer(self, number: int, batch: MiniBatch, h_ND: Tensor) -> Tensor:
        """[S, F]: one hop."""
        hop = batch.hops[0]
        in_N = batch.in_degree[self._relations].sum(0).double().add(1.0).rsqrt()
        out_N = batch.out_degree[self._relations].sum(0).double().add(1.0).rsqrt()
        target_S, source_N = in_N[: hop.num_targets].float()[:, None], out_N.float()[:, None]
        x_ND = h_ND * source_N
        total = x_ND[: hop.num_targets].clone()
        for relation in self._relations:
            first, last = int(hop.indptr[relation, 0]), int(hop.indptr[relation, -1])
            neighbors = Neighbors(
                num_sources=hop.num_sources,
                indptr=(hop.indptr[relation] - first).int(),
                source=hop.source[first:last],
                weight=None,
            )
            total += sum_neighbors(neighbors, x_ND)
        return total * target_S
