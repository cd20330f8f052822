"""Message passing over a whole graph, one layer at a time, in bounded memory, with full neighbourhoods.

Stages of one layer, over chunks of consecutive ids (S rows of a chunk, N nodes it reads, D columns):

    1. sample     chunk [S] -> all its in-neighbours, MiniBatch of one hop, nodes [N]    a thread
    2. gather     rows of the layer below [N, D] through host tier and disk              the same thread
    3. compute    [N, D] -> [S, D']                                                      the caller's thread
    4. write      [S, D'] -> a verified spill file a node type; the last layer -> sink

The next chunk is sampled and gathered while this one is computed, so at most two chunks are in memory. A row
is computed once a layer, where sampled mini-batches would compute it once for every batch it appears in.
Source: layer-wise inference, GraphSAGE's full-neighbourhood evaluation as in DGL's and PyG's examples.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.assemble import assemble
from sampling.batch import MiniBatch
from sampling.host_tier import HostTier
from sampling.loader import fetch_features
from sampling.neighbors import ALL_NEIGHBORS, NeighborSampler
from service.chunks import Chunk, ChunkLimits, plan_chunks
from service.spill import Spill, layer_folder
from service.tiers import host_tiers
from storage.features import StoredFeatures, TierCounters
from storage.graph import Topology
from storage.place import Place
from storage.progress import Progress

SPILL_FOLDER = "layerwise"
NUM_CHUNKS_AHEAD = 1
INPUT = -1
"""number of the pass that computes what layer 0 reads, where that has a pass of its own"""
NO_LIMIT = 2**62


class LayerStack(Protocol):
    """Layers of message passing; a method never sees more than one chunk and its in-neighbours."""

    @property
    def num_layers(self) -> int:
        """Layers that read neighbours; with 0 the input pass is all there is."""

    @property
    def has_input_pass(self) -> bool:
        """Compute `input` once a node in a pass of its own, not once for every chunk that reads the node."""

    def input(self, batch: MiniBatch) -> Tensor:
        """[N, D_0]: what the first layer reads, each row from its own node's features and degrees."""

    def layer(self, number: int, batch: MiniBatch, h_ND: Tensor) -> Tensor:
        """[S, D']: layer `number` for the batch's S seeds, over `batch.hops[0]`."""


@runtime_checkable
class JoiningStack(LayerStack, Protocol):
    """Layers whose last result is joined with those of the layers below (jumping knowledge)."""

    @property
    def joins_layers(self) -> bool:
        """Whether it does: the rows of all layers are then kept until the last is done."""

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """[S, D'] from the rows of the same S nodes in every layer, first to last."""


Sink = Callable[[Chunk, NDArray[np.float32]], None]
"""takes the last layer's rows [S, D] of one chunk; chunks come in order of type and id"""


@dataclass
class LayerReport:
    """What one layer cost; seconds are wall time."""

    layer: int
    """-1 for the pass that computes what layer 0 reads"""
    rows: int = 0
    edges: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    """of those, waiting for sampling and gathering"""
    host: TierCounters = field(default_factory=TierCounters)
    """rows asked of the host tier, and those it had"""
    disk: TierCounters = field(default_factory=TierCounters)
    """rows read from files: filling the host tier, then what it did not have"""


def run_layers(
    stack: LayerStack,
    *,
    topology: Topology,
    features: Sequence[StoredFeatures | None],
    values: Callable[[MiniBatch], MiniBatch],
    work: Place,
    cache_bytes: int,
    limits: ChunkLimits,
    device: torch.device,
    progress: Progress,
    name: str,
    sink: Sink,
    rows: Sequence[NDArray[np.int64]] | None = None,
) -> list[LayerReport]:
    """Run `stack` over every node and hand the last layer's rows to `sink`; one report a layer.

    Args:
        features: one table per node type, None where the type has none; the caller closes them.
        values: makes numbers of the features of a batch (`service.feature_values`).
        work: folder for the hidden states between layers, one float32 row a node, and a layer where layers are
            joined; removed afterwards, also when something goes wrong.
        cache_bytes: memory for the hottest rows of the layer below.
        name: what the progress bar calls this work.
        rows: ascending dense ids per type of the nodes wanted from the last layer; None for all.

    Memory beyond the topology: `cache_bytes` + two chunks, each at most (limits.edges + limits.rows) rows of
    the widest layer, unless a single node has more in-edges.
    """
    work.remove(SPILL_FOLDER)
    spills = work.child(SPILL_FOLDER)
    reports = []
    tables = list(features)
    below = ExitStack()  # the readers of the layer below, or of all layers below
    kept: list[Sequence[StoredFeatures | None]] = []
    joins = isinstance(stack, JoiningStack) and stack.joins_layers
    try:
        for number in range(INPUT if stack.has_input_pass else 0, stack.num_layers):
            is_last = number == stack.num_layers - 1
            wanted = rows if is_last else None
            total = int(topology.type_offsets[-1]) if wanted is None else sum(len(ids) for ids in wanted)
            label = "input" if number == INPUT else f"layer {number + 1} of {stack.num_layers}"
            progress.stage(f"{name}, {label}", total=total, unit="nodes")
            read = [*tables, *chain.from_iterable(kept[:-1])]  # the last kept are `tables`
            before = read_so_far(read)
            with Spill(spills, topology, layer=number) as spill:
                report = run_layer(
                    stack,
                    number,
                    topology=topology,
                    chunks=plan_chunks(
                        topology,
                        limits=ChunkLimits(limits.rows, NO_LIMIT) if number == INPUT else limits,
                        rows=wanted,
                    ),
                    tiers=host_tiers(tables, cache_bytes=cache_bytes),
                    values=values,
                    device=device,
                    progress=progress,
                    sink=sink if is_last else spill.write,
                    below=kept if is_last else (),
                )
            after = read_so_far(read)
            report.disk = TierCounters(
                requests=after.requests - before.requests,
                hits=after.hits - before.hits,
                bytes=after.bytes - before.bytes,
                seconds=after.seconds - before.seconds,
            )
            reports.append(report)
            if not kept:
                below.close()
                spills.remove(layer_folder(number - 1))
            if not is_last:
                tables = spill.open(below)
                if joins and number != INPUT:
                    kept.append(tables)
    finally:
        below.close()
        work.remove(SPILL_FOLDER)
    return reports


def run_layer(
    stack: LayerStack,
    number: int,
    *,
    topology: Topology,
    chunks: Iterable[Chunk],
    tiers: Sequence[HostTier | None],
    values: Callable[[MiniBatch], MiniBatch],
    device: torch.device,
    progress: Progress,
    sink: Sink,
    below: Sequence[Sequence[StoredFeatures | None]] = (),
) -> LayerReport:
    """Compute one layer, chunk by chunk; `tiers` hold features for the first pass, else the layer below.

    The result is joined with the same nodes' rows of the layers `below`, where these are given.
    """
    report = LayerReport(layer=number)
    reads_raw = number == INPUT or (number == 0 and not stack.has_input_pass)
    sampler = NeighborSampler(topology, fanouts=() if number == INPUT else (ALL_NEIGHBORS,), seed=0)
    batches = stream_batches(sampler, chunks=chunks, tiers=tiers, report=report, device=device)
    began = time.monotonic()
    with torch.inference_mode(), closing(batches):
        for chunk, batch in batches:
            h_ND = stack.input(values(batch)) if reads_raw else join_types(batch)
            out = h_ND if number == INPUT else stack.layer(number, batch, h_ND)
            if below:
                assert isinstance(stack, JoiningStack)
                out = stack.join([*(rows_of(tables, chunk).to(out) for tables in below), out])
            sink(chunk, out.float().cpu().numpy())
            report.rows += chunk.ids.shape[0]
            report.edges += sum(hop.source.shape[0] for hop in batch.hops)
            progress.advance(chunk.ids.shape[0])
    report.seconds = time.monotonic() - began
    for tier in tiers:
        if tier is not None:
            report.host = report.host + tier.counters
    return report


def stream_batches(
    sampler: NeighborSampler,
    *,
    chunks: Iterable[Chunk],
    tiers: Sequence[HostTier | None],
    report: LayerReport,
    device: torch.device,
) -> Generator[tuple[Chunk, MiniBatch], None, None]:
    """Each chunk with its batch, the next one prepared in a thread meanwhile; close it to stop the thread."""
    topology = sampler.topology

    def prepare(chunk: Chunk) -> MiniBatch:
        seeds = chunk.ids + topology.type_offsets[chunk.node_type]
        sample = sampler.sample(seeds, epoch=0, step=0)
        pinned = device.type == "cuda"
        features = fetch_features(sample.nodes, topology.type_offsets, tiers, pin_memory=pinned)
        return assemble(
            topology,
            sample,
            epoch=0,
            step=0,
            num_seeds=seeds.shape[0],
            num_seeds_global=seeds.shape[0],
            features=features,
        )

    flying: deque[tuple[Chunk, Future[MiniBatch]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="hopstream-layerwise") as thread:
        try:
            for chunk in chunks:
                flying.append((chunk, thread.submit(prepare, chunk)))
                if len(flying) > NUM_CHUNKS_AHEAD:
                    yield take(flying, report=report, device=device)
            while flying:
                yield take(flying, report=report, device=device)
        finally:
            for _, future in flying:
                future.cancel()


def take(
    flying: deque[tuple[Chunk, Future[MiniBatch]]], *, report: LayerReport, device: torch.device
) -> tuple[Chunk, MiniBatch]:
    """Wait for the oldest chunk in flight and put it on the device."""
    chunk, future = flying.popleft()
    began = time.monotonic()
    batch = future.result()
    report.wait_seconds += time.monotonic() - began
    return chunk, batch.to(device)


def join_types(batch: MiniBatch) -> Tensor:
    """[N, D] over the batch's one list of nodes, from its per-type tables of equal width."""
    present = [(kind, table) for kind, table in enumerate(batch.features) if table is not None]
    if len(batch.features) == 1:
        return present[0][1]
    joined = present[0][1].new_empty((batch.node_type.shape[0], present[0][1].shape[1]))
    for kind, table in present:
        joined[batch.node_type == kind] = table
    return joined


def rows_of(tables: Sequence[StoredFeatures | None], chunk: Chunk) -> Tensor:
    """[S, D] of a chunk's nodes from the tables of one layer."""
    table = tables[chunk.node_type]
    assert table is not None  # it has nodes
    rows = np.empty((chunk.ids.shape[0], table.dim), dtype=table.dtype)
    table.gather(chunk.ids, rows)
    return torch.from_numpy(rows)


def read_so_far(tables: Sequence[StoredFeatures | None]) -> TierCounters:
    """What the tables have read since they were opened."""
    return sum((table.counters for table in tables if table is not None), TierCounters())
