"""The planned stream that a run file asks for: what of the machine's memory it gets, and for what."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from sampling.batch_size import BatchSize
from sampling.open_stream import OpenStream, StreamSettings, open_stream
from sampling.seeds import EdgeOrder, SeedOrder
from sampling.shared_memory import FeatureMemory
from sampling.sources import SampleSource
from sampling.stream import Stream
from service.encoders.id_embedding import table_bytes
from service.machine_memory import anonymous_bytes, available_bytes
from service.run_file import RunFile
from service.sampling_section import sampling_mode
from service.schema import GraphSchema
from service.seed_edges import check_topology_fits, make_edge_sampling
from storage.default_cache import default_folder
from storage.progress import Progress
from storage.store import Store

FREE_SHARE = 0.8
"""of the memory that is left is the budget where none is given"""
FLOAT_BYTES = 4
KEPT_TENSORS = 4
"""of a layer's inputs and outputs are kept for the way back, with their gradients"""


def memory_budget(run: RunFile, *, num_workers: int) -> int:
    """Bytes for each of the workers of this machine, everything included."""
    if run.tiers.memory_bytes is not None:
        return int(run.tiers.memory_bytes)
    return anonymous_bytes() + int(available_bytes() * FREE_SHARE) // num_workers


def step_bytes(run: RunFile, batch: BatchSize) -> int:
    """Memory of one training step beside weights, about: each layer's rows there and back.

    Of the nodes that the encoder puts out there are also the rows of layers that read no hop, and joined layers
    (`encoder.jumping`), which are as wide as all of them together. Rows learned by id are looked up for every node.
    """
    encoder = run.encoder
    put_out = batch.nodes_by_hop[len(batch.nodes_by_hop) - 1 - encoder.num_hops]
    rows = sum(batch.nodes_by_hop) + put_out * (encoder.num_layers - encoder.num_hops)
    if encoder.jumping != "none":
        rows += put_out * encoder.num_layers
    by_id = batch.num_nodes * (encoder.id_embedding_dim or 0)
    return FLOAT_BYTES * int(KEPT_TENSORS * (rows * encoder.hidden_dim + by_id))


def open_rank_stream(
    store: Store,
    run: RunFile,
    *,
    order: SeedOrder,
    ranks: Sequence[int],
    world_size: int,
    opened: ExitStack,
    memory: FeatureMemory | None,
) -> Stream:
    """The stream of some ranks of a host, for a feeder: `service.feeding.OpenStream`."""
    found = planned_stream(store, run, order=order, ranks=ranks, world_size=world_size, opened=opened, memory=memory)
    return found.stream


def planned_stream(
    store: Store,
    run: RunFile,
    *,
    order: SeedOrder,
    ranks: Sequence[int],
    world_size: int,
    opened: ExitStack,
    memory: FeatureMemory | None = None,
    num_steps: int | None = None,
    device_rows: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> OpenStream:
    """Open the stream; its budget is that of all `ranks`, with their processes and steps.

    Args:
        memory: for the features of batches of ranks that are other processes; None where the rank is this one.

    Raises BadInput for a budget in which nothing works.
    """
    tiers = run.tiers
    others = len(ranks) if memory is not None else 0  # processes of about the size of this one
    # this process's own learned rows are in use already; one more copy is for a checkpoint of them
    learned_bytes = table_bytes(run.encoder, GraphSchema.from_store(store))
    memory_bytes = memory_budget(run, num_workers=len(ranks)) * len(ranks)
    if tiers.memory_bytes is None:
        memory_bytes += others * learned_bytes  # what the machine has left is without them
    process_bytes = (anonymous_bytes() + learned_bytes) * (1 + others)
    if isinstance(order, EdgeOrder):
        check_topology_fits(run, store, memory_bytes=memory_bytes, process_bytes=process_bytes)
    pool = None
    if run.workers.samplers:
        pool = sampler_pool(run, store, order=order, ranks=ranks, world_size=world_size)
    return open_stream(
        store,
        order=order,
        fanouts=run.sampling.fanouts,
        seed=run.run.seed,
        settings=StreamSettings(
            memory_bytes=memory_bytes,
            process_bytes=process_bytes,
            scratch_folder=tiers.scratch_folder or os.path.join(os.path.dirname(default_folder()), "scratch"),
            step_bytes=lambda batch: step_bytes(run, batch),
            device_rows=None if device_rows is None else tuple(device_rows),
            topology=tiers.topology,
            cache_bytes=None if tiers.host_cache_bytes is None else int(tiers.host_cache_bytes) * len(ranks),
            topology_cache_bytes=None if tiers.topology_cache_bytes is None else int(tiers.topology_cache_bytes),
            packing=tiers.packing,
            num_threads=run.sampling.num_threads,
        ),
        opened=opened,
        mode=sampling_mode(run.sampling, store),
        ranks=ranks,
        world_size=world_size,
        num_steps=num_steps,
        make_source=pool,
        make_edges=partial(make_edge_sampling, run, store) if isinstance(order, EdgeOrder) else None,
        memory=memory,
        progress=progress,
    )


def sampler_pool(
    run: RunFile, store: Store, *, order: SeedOrder, ranks: Sequence[int], world_size: int
) -> Callable[[], SampleSource]:
    """Makes the Ray actors that sample for these ranks; Ray is connected."""
    from service.sampler_pool import ActorSource  # who samples in threads never pays for importing Ray

    return lambda: ActorSource(
        store,
        fanouts=run.sampling.fanouts,
        seed=run.run.seed,
        order=order,
        num_actors=run.workers.samplers * len(ranks),
        mode=sampling_mode(run.sampling, store),
        ranks=ranks,
        world_size=world_size,
    )
