"""Evaluation: a linear probe on trained embeddings, beside what they have to beat.

For every node type with labels: rows of the embeddings, of the raw features, of SGC and of the same encoder
with fresh weights, each through the same probe on the same splits (`service.probe`). Only rows that a split uses
are held, one kind of rows at a time.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.baselines import NONE, Machinery, random_rows, raw_rows, sgc_rows
from service.embedding import EmbeddingConfig, check_schema
from service.embedding_files import MANIFEST, EmbeddingManifest, read_manifest, read_parts
from service.encoders.base import Encoder
from service.evaluation_report import EvaluationReport, RowsName, RowsReport, TypeReport, absent, summarise
from service.feature_values import FeatureValues
from service.labelled_rows import LabelledType, labelled_types, read_labelled
from service.lease import Lease
from service.probe import Split, SplitSizes, probe_splits
from service.schema import GraphSchema
from service.tiers import open_features
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

Wanted = list[NDArray[np.int64]]
"""ascending dense ids per node type"""


class EvaluationConfig(BaseModel):
    """The `evaluation` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_type: str | None = Field(None, description="Node type to probe; unset for every type with labels.")
    num_splits: int = Field(3, ge=1, description="Random splits, for data without a split of its own.")
    train_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes a random split trains on.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes that choose C.")
    max_train_rows: int = Field(2000, ge=2, description="Training rows used at most, drawn by the seed.")
    max_val_rows: int = Field(2000, ge=1, description="Validation rows used at most.")
    max_test_rows: int = Field(5000, ge=1, description="Test rows used at most.")
    strengths: tuple[float, ...] = Field(
        (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0),
        min_length=1,
        description="Values of C (inverse L2 penalty) tried; validation accuracy chooses.",
    )

    @property
    def sizes(self) -> SplitSizes:
        """The limits of rows."""
        return SplitSizes(train=self.max_train_rows, val=self.max_val_rows, test=self.max_test_rows)


def evaluate(
    store: Store,
    *,
    embeddings: str,
    random_encoder: Callable[[], Encoder],
    config: EvaluationConfig,
    seed: int,
    work: Place,
    cache_bytes: int,
    embedding: EmbeddingConfig,
    device: torch.device,
    progress: Progress,
) -> EvaluationReport:
    """Probe the embeddings in folder `embeddings` and the three baselines on `store`'s labels.

    Args:
        random_encoder: makes an encoder of the trained one's configuration with fresh weights.
        seed: of random splits and of the draws that keep within the limits of rows.
        work, cache_bytes, embedding, device: for the layer-wise baselines, as in `service.embedding.embed`.

    Raises BadInput when the store has no labels, and when the embeddings are unfinished or of other nodes.
    """
    began = time.monotonic()
    if config.train_fraction + config.val_fraction >= 1.0:
        raise BadInput(
            "evaluation.train_fraction, evaluation.val_fraction",
            f"{config.train_fraction} + {config.val_fraction}",
            rule="both together leave nodes to test on",
            remedy="lower one of them",
        )
    place = Place(embeddings)
    manifest = read_manifest(place)
    check_manifest(manifest, store, place)
    types: list[LabelledType] = []
    names = labelled_types(store, chosen=config.node_type)
    progress.stage("read labels", total=sum(map(store.num_nodes, names)), unit="nodes")
    for name in names:
        labelled = read_labelled(
            store,
            name,
            num_splits=config.num_splits,
            fractions=(config.train_fraction, config.val_fraction),
            sizes=config.sizes,
            seed=seed,
        )
        types.append(labelled)
        progress.advance(store.num_nodes(name))
    results: list[list[RowsReport]] = [[] for _ in types]
    with Lease(work), ExitStack() as opened:
        num_edges = sum(relation.num_edges for relation in store.relations)
        progress.stage("read edges", total=num_edges, unit="edges")
        topology = store.topology()
        progress.advance(num_edges)
        machinery = Machinery(
            topology=topology,
            features=open_features(store, opened),
            values=FeatureValues(GraphSchema.from_store(store)).to(device),
            work=work,
            cache_bytes=cache_bytes,
            limits=embedding.limits,
            device=device,
            progress=progress,
        )

        def score(number: int, name: RowsName, x_ND: NDArray[np.float32], since: float) -> None:
            results[number].append(probe_rows(types[number], name, x_ND, config=config, since=since, progress=progress))

        def score_all(name: RowsName, rows_of: Callable[[Wanted], Sequence[NDArray[np.float32]]]) -> None:
            """Score rows that one pass gives for all types that have them."""
            scored = [kind for kind in types if name != "sgc" or machinery.features[kind.index] is not None]
            began_rows = time.monotonic()
            wanted: Wanted = [NONE] * len(store.node_types)
            for kind in scored:
                wanted[kind.index] = kind.rows()
            found = rows_of(wanted)
            share = (time.monotonic() - began_rows) / max(1, len(scored))
            for number, kind in enumerate(types):
                if kind in scored:
                    score(number, name, found[kind.index], time.monotonic() - share)

        for number, kind in enumerate(types):
            since = time.monotonic()
            trained = embedded_rows(
                store, kind.name, manifest=manifest, place=place, rows=kind.rows(), progress=progress
            )
            score(number, "trained", trained, since)
            table = machinery.features[kind.index]
            if table is None:
                note = f"node type {kind.name} has no features"
                results[number] += [absent("raw", note=note), absent("sgc", note=note)]
            else:
                since = time.monotonic()
                scale = store.node_type(kind.name).feature_scale
                raw = raw_rows(table, scale=scale, rows=kind.rows(), name=kind.name, progress=progress)
                score(number, "raw", raw, since)
        score_all("sgc", lambda wanted: sgc_rows(machinery, rows=wanted))
        encoder = random_encoder()
        check_schema(encoder.schema, store)
        score_all("random_init", lambda wanted: random_rows(machinery, encoder, rows=wanted))
    return EvaluationReport(
        embeddings=embeddings,
        run=manifest.run,
        step=manifest.step,
        seed=seed,
        seconds=time.monotonic() - began,
        node_types=tuple(
            report_type(kind, store=store, results=result) for kind, result in zip(types, results, strict=True)
        ),
    )


def probe_rows(
    kind: LabelledType,
    name: RowsName,
    x_ND: NDArray[np.float32],
    *,
    config: EvaluationConfig,
    since: float,
    progress: Progress,
) -> RowsReport:
    """Probe rows [len(kind.rows()), D] on every split; the report counts seconds from `since`."""
    progress.stage(f"probe {kind.name}, {name}", total=len(kind.splits), unit="splits")
    rows = kind.rows()
    local = [
        Split(
            train=np.searchsorted(rows, split.train),
            val=np.searchsorted(rows, split.val),
            test=np.searchsorted(rows, split.test),
        )
        for split in kind.splits
    ]
    probes = []
    for result in probe_splits(
        x_ND,
        labels=kind.labels[rows],
        splits=local,
        strengths=config.strengths,
        num_threads=torch.get_num_threads(),
    ):
        probes.append(result)
        progress.advance(1)
    return summarise(name, dim=x_ND.shape[1], probes=probes, seconds=time.monotonic() - since)


def report_type(kind: LabelledType, *, store: Store, results: Sequence[RowsReport]) -> TypeReport:
    """One node type's part of the report."""
    first = kind.splits[0]
    return TypeReport(
        node_type=kind.name,
        num_nodes=store.node_type(kind.name).num_live,
        num_labelled=kind.num_labelled,
        num_classes=kind.num_classes,
        split=kind.kind,
        num_splits=len(kind.splits),
        train_rows=first.train.shape[0],
        val_rows=first.val.shape[0],
        test_rows=first.test.shape[0],
        train_rows_available=kind.available[0],
        val_rows_available=kind.available[1],
        test_rows_available=kind.available[2],
        results=tuple(results),
    )


def check_manifest(manifest: EmbeddingManifest, store: Store, place: Place) -> None:
    """Raise BadInput when node types, or their numbers of nodes, are not those of the store."""
    embedded = {kind.name: kind.num_nodes for kind in manifest.node_types}
    stored = {kind.name: kind.num_live for kind in store.node_types}
    for name in stored | embedded:
        if embedded.get(name) != stored.get(name):
            raise BadInput(
                place.full(MANIFEST),
                f"node type {name}: {embedded.get(name, 'no')} embeddings for {stored.get(name, 'no')} nodes",
                rule=f"embeddings cover the nodes of the store, {store.place.url}",
                remedy="embed this store again, or name the embeddings that belong to it",
            )


def embedded_rows(
    store: Store,
    node_type: str,
    *,
    manifest: EmbeddingManifest,
    place: Place,
    rows: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.float32]:
    """Embeddings [len(rows), D] of the ascending dense ids `rows`, joined by the user's ids.

    Raises BadInput for an id that the store does not know, that occurs twice, or that is missing; DamagedStore
    for a part that cannot be read.
    """
    kind = next(item for item in manifest.node_types if item.name == node_type)
    progress.stage(f"read {node_type}", total=kind.num_nodes, unit="nodes")
    seen = np.zeros(store.num_nodes(node_type), dtype=bool)
    seen[store.deleted(node_type)] = True
    out = np.empty((rows.shape[0], manifest.dim), dtype=np.float32)
    remedy = "embed this store again, or name the embeddings that belong to it"
    for ids, x_ND in read_parts(place, kind.parts):
        found = store.rows_of(node_type, ids)
        again = np.flatnonzero(seen[found])
        fresh = np.unique(found).shape[0]
        if again.size or fresh < found.shape[0]:
            first = int(again[0]) if again.size else repeated(found)
            raise BadInput(
                place.full(node_type),
                f"id {ids[first]} twice",
                rule="every node has one embedding",
                remedy=remedy,
            )
        seen[found] = True
        target = np.searchsorted(rows, found)
        wanted = np.flatnonzero((target < rows.shape[0]) & (rows[np.minimum(target, rows.shape[0] - 1)] == found))
        out[target[wanted]] = x_ND[wanted]
        progress.advance(found.shape[0])
    missing = np.flatnonzero(~seen)
    if missing.size:
        identifier = store.node_column(node_type, "id")[int(missing[0])]
        raise BadInput(
            place.full(node_type),
            f"no embedding of id {identifier} ({missing.size} such nodes)",
            rule="every node has one embedding",
            remedy=remedy,
        )
    return out


def repeated(values: NDArray[np.int64]) -> int:
    """Place of the first value that occurs before it already; there is one."""
    _, first = np.unique(values, return_index=True)
    return int(np.setdiff1d(np.arange(values.shape[0]), first)[0])
