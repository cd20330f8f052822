"""Embeddings of every node of a store: layer by layer, full neighbourhoods, straight into Parquet.

    store -> chunks -> encoder layers, hidden states on disk      service.layerwise
    last layer -> Parquet parts under the user's ids, manifest    service.embedding_files

The store may be another than the one trained on, as long as its node types and relations are the same.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sampling.batch import MiniBatch
from service.chunks import Chunk, ChunkLimits
from service.embedding_claim import claimed
from service.embedding_files import (
    STAGING,
    EmbeddedType,
    EmbeddingManifest,
    PartWriter,
    commit,
)
from service.encoders.base import Encoder
from service.encoders.nodes import Nodes
from service.feature_values import FeatureValues
from service.layerwise import LayerReport, run_layers
from service.lease import Lease
from service.schema import GraphSchema
from service.tiers import open_features
from storage.errors import BadInput
from storage.features import TierCounters
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

IDS_PER_BATCH = 65536


class EmbeddingConfig(BaseModel):
    """The `embedding` section of a run file: how large a piece of the graph is computed at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_per_chunk: int = Field(8192, ge=1, description="Nodes computed together.")
    max_edges_per_chunk: int = Field(
        262_144,
        ge=1,
        description="A chunk ends before it has more in-edges than this, but holds one node at least. Two "
        "chunks are in memory, each of at most rows_per_chunk + max_edges_per_chunk rows of features or "
        "hidden states.",
    )

    @property
    def limits(self) -> ChunkLimits:
        """Both, as the layer-wise machinery takes them."""
        return ChunkLimits(rows=self.rows_per_chunk, edges=self.max_edges_per_chunk)


@dataclass(frozen=True)
class EmbeddingSource:
    """Where an encoder's weights come from; written into the manifest."""

    run: str
    """name of the run"""
    step: int
    """training steps done"""


@dataclass(frozen=True)
class EmbeddingReport:
    """What embedding a store cost."""

    rows: int
    dim: int
    seconds: float
    host: TierCounters
    """rows asked of the host tier in all layers, and those it had"""
    disk: TierCounters
    """rows read from the store and the work folder in all layers"""
    layers: tuple[LayerReport, ...]


class EncoderStack:
    """An encoder as `service.layerwise` computes it: no noise, statistics of evaluation."""

    def __init__(self, encoder: Encoder, *, device: torch.device) -> None:
        self._encoder = encoder.to(device).eval()

    @property
    def num_layers(self) -> int:
        """Layers of the encoder that read neighbours."""
        return self._encoder.num_layers

    @property
    def has_input_pass(self) -> bool:
        """Where inputs are projected; a plain copy of raw features is cheaper to repeat than to store."""
        return self.num_layers == 0 or not isinstance(self._encoder.projections[0], torch.nn.Identity)

    @property
    def joins_layers(self) -> bool:
        """Where the encoder's output is of all its layers."""
        return self.num_layers > 1 and self._encoder.config.jumping != "none"

    def input(self, batch: MiniBatch) -> Tensor:
        """[N, D_0]; of an encoder without neighbours its output."""
        learned = self._encoder.look_up(batch).learned
        h_ND = self._encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree, learned)
        if self.num_layers == 0:
            out: Tensor = self._encoder(h_ND, (), Nodes.of(batch))
            return out
        return h_ND

    def layer(self, number: int, batch: MiniBatch, h_ND: Tensor) -> Tensor:
        """[S, D'] of the batch's seeds."""
        nodes = Nodes.of(batch, kernels=self._encoder.config.kernels)
        out = self._encoder.layer(number, h_ND.to(self._encoder.dtype), batch.hops[0], nodes)
        if number == self.num_layers - 1 and not self.joins_layers:
            return self._encoder.finish([out])
        return out

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """[S, D'] of the encoder's output."""
        return self._encoder.finish(states)


def embed(
    encoder: Encoder,
    *,
    store: Store,
    out: str,
    work: Place,
    source: EmbeddingSource,
    cache_bytes: int,
    rows_per_chunk: int,
    max_edges_per_chunk: int,
    device: torch.device,
    progress: Progress,
) -> EmbeddingReport:
    """Write the embedding of every node of `store` that is not deleted to `out` as Parquet, manifest last.

    Args:
        encoder: trained; moved to `device` and put into evaluation mode.
        out: folder or fsspec URL. An earlier result in it stays whole until this one is complete.
        work: folder for hidden states, (4 x widest layer) bytes a node twice over, with jumping once a layer; emptied
            afterwards. One process uses it at a time.
        cache_bytes: host memory for the hottest rows of features or hidden states.
        rows_per_chunk, max_edges_per_chunk: see `EmbeddingConfig`.

    Raises BadInput, before anything is computed or written, when the store's node types, feature widths or
    relations are not those of the encoder, when its nodes are not those that the encoder has learned rows of, when
    another process is at work in `work`, and when `out` holds anything but embeddings.
    """
    check_schema(encoder.schema, store)
    if encoder.ids is not None:
        encoder.ids.refuse_other_nodes(GraphSchema.from_store(store), place=store.place.url)
    began = time.monotonic()
    place = Place(out)
    dim = encoder.config.out_dim
    with Lease(work) as lease, claimed(place):
        with ExitStack() as opened:
            writers = [
                opened.enter_context(
                    PartWriter(
                        place.child(STAGING),
                        node_type=kind.name,
                        ids=iter(store.id_batches(kind.name, rows_per_batch=IDS_PER_BATCH)),
                        dim=dim,
                    )
                )
                for kind in store.node_types
            ]

            def write(chunk: Chunk, rows: NDArray[np.float32]) -> None:
                lease.check()
                writers[chunk.node_type].write(rows)

            layers = run_layers(
                EncoderStack(encoder, device=device),
                topology=store.topology(),
                features=open_features(store, opened),
                values=FeatureValues(GraphSchema.from_store(store)).to(device),
                work=work,
                cache_bytes=cache_bytes,
                limits=ChunkLimits(rows=rows_per_chunk, edges=max_edges_per_chunk),
                device=device,
                progress=progress,
                name="embed",
                sink=write,
                rows=[store.live_ids(kind.name) for kind in store.node_types] if store.has_deleted else None,
            )
        types = tuple(
            EmbeddedType(name=kind.name, num_nodes=kind.num_live, id_type=kind.id_type, parts=tuple(writer.parts))
            for kind, writer in zip(store.node_types, writers, strict=True)
        )
        lease.check()
        commit(
            place,
            EmbeddingManifest(
                format_version=1,
                run=source.run,
                step=source.step,
                encoder=encoder.config.model_dump(mode="json"),
                store=store.place.url,
                generation=store.generation.generation,
                generation_xxh64=store.generation_xxh64,
                dim=dim,
                node_types=types,
            ),
        )
    return EmbeddingReport(
        rows=sum(kind.num_nodes for kind in types),
        dim=dim,
        seconds=time.monotonic() - began,
        host=sum((layer.host for layer in layers), TierCounters()),
        disk=sum((layer.disk for layer in layers), TierCounters()),
        layers=tuple(layers),
    )


def check_schema(schema: GraphSchema, store: Store) -> None:
    """Raise BadInput that names what differs between the graph an encoder was made for and `store`.

    Element types may differ, and features of one may be quantised and of the other not: they become numbers before
    anything else.
    """
    other = GraphSchema.from_store(store)

    def refuse(found: str, rule: str) -> BadInput:
        remedy = "ingest tables with the names, order and feature columns that the run was trained on"
        return BadInput(store.place.url, found, rule=rule, remedy=remedy)

    def compare(what: str, expected: list[str], found: list[str]) -> None:
        missing = [name for name in expected if name not in found]
        extra = [name for name in found if name not in expected]
        rule = f"the encoder was trained on {what}s {', '.join(expected)}"
        if missing:
            raise refuse(f"{what} {missing[0]} is missing ({len(missing)} such)", rule)
        if extra:
            raise refuse(f"{what} {extra[0]} is unknown to the encoder ({len(extra)} such)", rule)
        if expected != found:
            raise refuse(f"{what}s in the order {', '.join(found)}", rule)

    compare("node type", [kind.name for kind in schema.node_types], [kind.name for kind in other.node_types])
    compare("relation", [item.name for item in schema.relations], [item.name for item in other.relations])
    for expected, found in zip(schema.node_types, other.node_types, strict=True):
        if expected.feature_dim != found.feature_dim:
            columns = "no features" if found.feature_dim is None else f"{found.feature_dim} feature columns"
            raise refuse(
                f"node type {found.name} has {columns}",
                f"the encoder was trained on {expected.feature_dim or 'no'} feature columns",
            )
