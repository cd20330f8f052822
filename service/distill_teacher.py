"""The teacher of a student: a run's embeddings, or the class probabilities of a finetuned classifier, of one type.

Either is a table of one row for each node that is not deleted, in the store's order, as Parquet under the user's ids.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from service.embedding_files import EmbeddingManifest, read_manifest, read_parts
from service.evaluation_rows import check_manifest
from service.finetune import MODEL, Finetuning
from service.finetune_nodes import LabelledNodes, read_nodes
from service.finetune_predictions import read_probabilities
from service.preparation import store_of
from service.results import EMBEDDINGS, embedded_store, newest_checkpoint, settings_of
from service.run_file import RunFile
from service.run_folder import run_place
from service.tiers import block_cache_of
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress
from storage.store import Store


@dataclass(frozen=True, eq=False)
class Teacher:
    """What a student learns from."""

    store: Store
    node_type: str
    dim: int
    """columns of a row"""
    step: int
    """training steps done by the encoder"""
    source: dict[str, Any]
    """where the rows are from, as JSON has it: a result keeps it"""
    place: Place
    """folder of the rows"""
    read: Callable[[], Iterator[NDArray[np.float32]]]
    """streams the rows [n, dim]"""
    manifest: EmbeddingManifest | None
    """of embeddings"""
    nodes: LabelledNodes | None
    """whose classes the columns are, where they are probabilities"""


def open_teacher(run: RunFile, *, progress: Progress) -> Teacher:
    """The teacher that section `distill` names.

    Raises BadInput when it is not there or unfinished, of a replaced store, or of a node type without features.
    """
    settings_of(run)
    progress.stage("open teacher", total=1, unit="teachers")
    teacher = embeddings_teacher(run) if run.distill.target == "embeddings" else labels_teacher(run)
    progress.advance(1)
    return teacher


def embeddings_teacher(run: RunFile) -> Teacher:
    """The run's embeddings."""
    place = run_place(run).child(EMBEDDINGS)
    manifest = read_manifest(place)
    store = embedded_store(run, manifest)
    check_manifest(manifest, store, place)
    node_type = featured_type(store, run.distill.node_type)
    parts = next(kind.parts for kind in manifest.node_types if kind.name == node_type)
    return Teacher(
        store=store,
        node_type=node_type,
        dim=manifest.dim,
        step=manifest.step,
        source={
            "run": manifest.run,
            "step": manifest.step,
            "node_type": node_type,
            "generation_xxh64": manifest.generation_xxh64,
        },
        place=place,
        read=lambda: (rows for _, rows in read_parts(place, parts)),
        manifest=manifest,
        nodes=None,
    )


def labels_teacher(run: RunFile) -> Teacher:
    """The predictions of the classifier `finetune.name`."""
    checkpoint = newest_checkpoint(run)
    store = store_of(run, checkpoint.state, block_cache=block_cache_of(run.tiers))
    nodes = read_nodes(store, run.finetune, split_seed=run.run.seed)
    finetuning = Finetuning(run, "pretrained", checkpoint=checkpoint, store=store, nodes=nodes)
    if finetuning.finished() is None:
        raise BadInput(
            finetuning.place.url,
            "no finished classifier",
            rule="distill.target=labels learns from a classifier",
            remedy="run `hopstream finetune` with this run file to its end, or set finetune.name",
        )
    if run.distill.node_type not in (None, nodes.kind.name):
        raise BadInput(
            f"distill.node_type={run.distill.node_type}",
            f"the classifier is of node type {nodes.kind.name}",
            rule="a student of labels is of the classifier's node type",
            remedy="leave distill.node_type out",
        )
    return Teacher(
        store=store,
        node_type=featured_type(store, nodes.kind.name),
        dim=nodes.classes.shape[0],
        step=checkpoint.state.step,
        source={
            "run": run.run.name,
            "step": checkpoint.state.step,
            "node_type": nodes.kind.name,
            "generation_xxh64": store.generation_xxh64,
            "classifier": run.finetune.name,
            "classifier_xxh64": xxhash.xxh64_hexdigest(finetuning.place.read_bytes(MODEL)),
        },
        place=finetuning.place,
        read=lambda: read_probabilities(finetuning.place),
        manifest=None,
        nodes=nodes,
    )


def featured_type(store: Store, chosen: str | None) -> str:
    """The chosen node type, or the only one with features; BadInput where there is none, or no only one."""
    found = [kind.name for kind in store.node_types if kind.feature_dim is not None]
    names = found if chosen is None else [store.node_type(chosen).name]
    if len(names) == 1 and names[0] in found:
        return names[0]
    raise BadInput(
        "distill.node_type" if chosen is None else f"node type {chosen}",
        f"unset, and node types {', '.join(found)} have features" if chosen is None and found else "no features",
        rule="a student reads the features of nodes of one type",
        remedy=f"set distill.node_type to one of {', '.join(found)}" if found else "ingest a node table with features",
    )
