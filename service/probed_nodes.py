"""The labelled nodes that a run probes: read with their sampled neighbours once, embedded with whatever weights.

    store -> labels, one split                                                       service.labelled_rows
    rows -> mini-batches, neighbours drawn once under a key of their own             sampling.superbatch_sampler
    weights -> states of the rows, without noise -> linear probe -> validation accuracy

The same neighbours are read at every probe, so figures differ by the weights alone. Their features wait on local disk,
in files that have no name any more: however wide neighbourhoods are, they take no memory of the run's budget. Shapes: n
rows, D columns.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampling.assemble import assemble
from sampling.batch import MiniBatch
from sampling.fanouts import HopFanout
from sampling.loader import fetch_features
from sampling.superbatch_sampler import SuperbatchSampler
from service.encoders import make_encoder
from service.encoders.id_embedding import make_id_embedding
from service.encoders.nodes import Nodes
from service.errors import TrainingFailed
from service.feature_values import FeatureValues
from service.labelled_rows import check_fractions, labelled_types, read_labelled
from service.preparation import Preparation
from service.probe import Split, best_on_validation
from service.probe_schedule import ValidationProbeConfig
from service.run_file import RunFile
from service.schema import GraphSchema
from service.tiers import open_features
from storage.block_files import NO_ROOM
from storage.default_cache import default_folder
from storage.errors import BadInput
from storage.progress import Progress
from storage.store import Store
from storage.stored_topology import StoredTopology

SECTION = "training.probe"
ROWS_PER_BATCH = 256
PROBE_EPOCH = 1 << 40
"""no run trains so long, so the draws are those of no step"""
CACHE_BYTES = 32 << 20
"""of the topology, while neighbours are drawn"""


@dataclass(frozen=True)
class ProbedNodes:
    """What is kept: structure in memory, features in the store's type on disk."""

    batches: tuple[MiniBatch, ...]
    labels: NDArray[np.int64]
    """[n], of the batches' seeds one after another"""
    split: Split
    """places among them; nothing is in its test part"""


class EncoderProbe:
    """Validation accuracy by the weights of an encoder; one call at a time, in any thread.

    Raises BadInput, when made, for a store without labels and a split that cannot be probed.
    """

    def __init__(self, run: RunFile, prepared: Preparation, *, device: torch.device, progress: Progress) -> None:
        schema = GraphSchema.from_store(prepared.store)
        with torch.random.fork_rng(devices=[]):
            self._encoder = make_encoder(run.encoder, schema=schema).to(device).eval()
        self._encoder.ids = make_id_embedding(run.encoder, schema=schema, seed=run.run.seed)
        self._values = FeatureValues(schema).to(device)
        self._config = run.training.probe
        self._device = device
        self._kernels = run.encoder.kernels
        self._nodes = read_probed_nodes(
            prepared.store,
            run.training.probe,
            fanouts=run.sampling.fanouts[: self._encoder.num_layers],
            seed=run.run.seed,
            scratch_folder=run.tiers.scratch_folder or os.path.join(os.path.dirname(default_folder()), "scratch"),
            progress=progress,
        )

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """Share of the validation nodes predicted; TrainingFailed for states that are not finite."""
        self._encoder.load_state_dict(weights)
        with torch.inference_mode():
            x_ND = torch.cat([self._states(batch.to(self._device)) for batch in self._nodes.batches]).float().cpu()
        if not bool(torch.isfinite(x_ND).all()):
            raise TrainingFailed("the validation probe found states that are not finite: training has diverged")
        nodes = self._nodes
        _, best = best_on_validation(
            x_ND.numpy(), labels=nodes.labels, split=nodes.split, strengths=self._config.strengths
        )
        return best.val_accuracy

    def _states(self, batch: MiniBatch) -> Tensor:
        """[S, D] of the batch's seeds."""
        batch = self._values(self._encoder.look_up(batch))
        h = self._encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree, batch.learned)
        hops = batch.hops[: self._encoder.num_layers][::-1]
        states: Tensor = self._encoder(h, hops, Nodes.of(batch, kernels=self._kernels), None, batch.num_seeds)
        return states[: batch.num_seeds]


def read_probed_nodes(
    store: Store,
    config: ValidationProbeConfig,
    *,
    fanouts: tuple[HopFanout, ...],
    seed: int,
    scratch_folder: str,
    progress: Progress,
) -> ProbedNodes:
    """Labels, split and mini-batches of the nodes that are probed; raises as `EncoderProbe`."""
    check_fractions(section=SECTION, train=config.train_fraction, val=config.val_fraction)
    names = labelled_types(store, chosen=config.node_type, section=SECTION)
    if len(names) > 1:
        raise BadInput(
            f"{SECTION}.node_type",
            f"unset, with labels on node types {', '.join(names)}",
            rule="one node type is probed",
            remedy="name it",
        )
    kind = read_labelled(
        store,
        names[0],
        num_splits=1,
        fractions=(config.train_fraction, config.val_fraction),
        sizes=config.sizes,
        seed=seed,
        source=config.split,
        section=SECTION,
    )
    # test nodes are neither read nor predicted
    split = Split(train=kind.splits[0].train, val=kind.splits[0].val, test=np.empty(0, dtype=np.int64))
    rows = split.rows()
    batches = read_batches(
        store,
        rows + int(store.type_offsets[kind.index]),
        fanouts=fanouts,
        seed=seed,
        scratch_folder=scratch_folder,
        progress=progress,
    )
    return ProbedNodes(batches=batches, labels=kind.labels[rows], split=split.within(rows))


def read_batches(
    store: Store,
    seeds: NDArray[np.int64],
    *,
    fanouts: tuple[HopFanout, ...],
    seed: int,
    scratch_folder: str,
    progress: Progress,
) -> tuple[MiniBatch, ...]:
    """Mini-batches of `seeds` (distinct global ids) in their order, neighbours drawn uniformly.

    Args:
        scratch_folder: local folder for features, and meanwhile for the merged edges of several segments.

    The topology is read from the disk, wherever training has it. Memory: some 100 MiB, given back, and of each batch 20
    bytes a node and edge. Raises BadInput when the folder has no room.
    """
    parts = [seeds[first : first + ROWS_PER_BATCH] for first in range(0, seeds.shape[0], ROWS_PER_BATCH)]
    progress.stage("read probed nodes", total=len(parts), unit="batches")
    batches = []
    with ExitStack() as reading:
        tables = open_features(store, reading)
        os.makedirs(scratch_folder, exist_ok=True)
        folder = reading.enter_context(TemporaryDirectory(prefix="hopstream-probe-", dir=scratch_folder))
        topology = reading.enter_context(StoredTopology(store, cache_bytes=CACHE_BYTES, merge_folder=folder))
        sampler = SuperbatchSampler(topology, fanouts=fanouts, seed=seed)
        reading.callback(sampler.close)
        drawn = sampler.sample([(PROBE_EPOCH, number, part) for number, part in enumerate(parts)])
        for number, part in enumerate(parts):
            sample = drawn.sample(number)
            batches.append(
                assemble(
                    drawn.batch(number),
                    sample,
                    epoch=PROBE_EPOCH,
                    step=number,
                    num_seeds=part.shape[0],
                    num_seeds_global=part.shape[0],
                    features=tuple(
                        None if table is None else laid_down(table, folder)
                        for table in fetch_features(sample.nodes, store.type_offsets, tables)
                    ),
                )
            )
            drawn.release(number)
            progress.advance(1)
    return tuple(batches)


def laid_down(table: Tensor, folder: str) -> Tensor:
    """The same rows mapped from a file of `folder` that is there as long as they are."""
    if table.numel() == 0:
        return table
    path = os.path.join(folder, "features")
    try:
        table.numpy().tofile(path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise BadInput(
            f"folder {os.path.dirname(folder)}",
            "no room for the features of probed nodes and their neighbours",
            rule=f"they are laid down there while a run with {SECTION} lasts",
            remedy=f"make room, name another folder by tiers.scratch_folder, or lower {SECTION}.max_train_rows",
        ) from error
    rows = torch.from_file(path, shared=False, size=table.numel(), dtype=table.dtype).view(table.shape)
    os.remove(path)
    return rows
