"""Evaluation: trained embeddings at several tasks, beside what they have to beat.

    probe        a linear probe on the labels: the data's split, or random ones    service.probe
    knn          nearest neighbours on the same splits                             service.knn
    few_shot     a few labels a class                                              service.few_shot
    clustering   k-means against the labels                                        service.clustering
    link         held-out edges                                                    service.link_prediction
    picture      the rows in two dimensions                                        service.picture

Each task gets rows of the embeddings, of the raw features, of SGC and of the same encoder with fresh weights
(`service.evaluation_rows`), of the same nodes. Only rows that a task looks at are held, one kind of rows at a time.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from service.baselines import Machinery
from service.clustering import ClusteringConfig, ClusteringTask
from service.embedding import EmbeddingConfig
from service.embedding_files import read_manifest
from service.encoders.base import Encoder
from service.evaluation_report import EvaluationReport, TaskName
from service.evaluation_rows import Wanted, all_rows, check_manifest, missing_note
from service.evaluation_task import FigureTask, Task
from service.feature_values import FeatureValues
from service.few_shot import FewShotConfig, FewShotTask
from service.knn import KnnConfig, KnnTask
from service.labelled_rows import LabelledType, SplitSource, check_fractions, labelled_types, read_labelled
from service.lease import Lease
from service.link_prediction import LinkTask
from service.link_problem import LinkConfig, held_out_table, link_problem
from service.picture import PictureConfig, PictureTask
from service.probe import SplitSizes
from service.probe_task import ProbeTask
from service.schema import GraphSchema
from service.tiers import open_features
from storage.graph import Topology
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

USES_LABELS: tuple[TaskName, ...] = ("probe", "knn", "few_shot", "clustering")


class EvaluationConfig(BaseModel):
    """The `evaluation` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[TaskName, ...] = Field(
        ("probe",), min_length=1, description="What is done, of probe, knn, few_shot, clustering, link, picture."
    )
    node_type: str | None = Field(None, description="Node type to evaluate; unset for every type with labels.")
    split: SplitSource = Field(
        "auto", description="The data's own split, or random ones; auto: the data's where it has one."
    )
    num_splits: int = Field(3, ge=1, description="Random splits, 20 in the protocol of BGRL.")
    train_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes a random split trains on.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes that choose C.")
    max_train_rows: int = Field(2000, ge=2, description="Training rows used at most, drawn by the seed.")
    max_val_rows: int = Field(2000, ge=1, description="Validation rows used at most.")
    max_test_rows: int = Field(5000, ge=1, description="Test rows used at most.")
    strengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.0625, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0),
        min_length=1,
        description="Values of C (inverse L2 penalty) tried; validation accuracy chooses.",
    )
    knn: KnnConfig = KnnConfig()
    few_shot: FewShotConfig = FewShotConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    link: LinkConfig = LinkConfig()
    picture: PictureConfig = PictureConfig()

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
    pictures: Place,
    cache_bytes: int,
    embedding: EmbeddingConfig,
    device: torch.device,
    progress: Progress,
) -> EvaluationReport:
    """Score the embeddings in folder `embeddings` and the three baselines at the tasks of `config`.

    Args:
        random_encoder: makes an encoder of the trained one's configuration with fresh weights.
        seed: of everything drawn: splits, rows within the limits, shots, starts, negatives.
        pictures: where pictures are written.
        work, cache_bytes, embedding, device: for the layer-wise baselines, as in `service.embedding.embed`.

    Raises BadInput when a task needs labels and the store has none, when held-out edges are missing or in the store,
    and when the embeddings are unfinished or of other nodes.
    """
    began = time.monotonic()
    check_fractions(section="evaluation", train=config.train_fraction, val=config.val_fraction)
    if "link" in config.tasks:
        held_out_table(config.link)  # before anything long begins
    place = Place(embeddings)
    manifest = read_manifest(place)
    check_manifest(manifest, store, place)
    labelled = read_types(store, config=config, seed=seed, progress=progress)
    with Lease(work), ExitStack() as opened:
        num_edges = sum(relation.num_edges for relation in store.relations)
        progress.stage("read edges", total=num_edges, unit="edges")
        topology = store.topology()
        progress.advance(num_edges)
        probes = [ProbeTask(kind, strengths=config.strengths) for kind in labelled if "probe" in config.tasks]
        tasks = [
            task
            for name in dict.fromkeys(config.tasks)
            for task in make_tasks(name, store, topology, labelled, config=config, seed=seed, pictures=pictures)
        ]
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
        for rows in all_rows(
            store,
            wanted=wanted_by([*probes, *tasks], num_types=len(store.node_types)),
            manifest=manifest,
            place=place,
            machinery=machinery,
            random_encoder=random_encoder,
            progress=progress,
        ):
            for task in [*probes, *tasks]:
                missing = [index for index in task.wanted if rows.x[index] is None]
                if missing:
                    task.leave_out(rows.name, note=missing_note(store, missing[0]))
                else:
                    task.score(rows, progress)
            del rows  # the next kind is made while nothing holds this one
    return EvaluationReport(
        embeddings=embeddings,
        run=manifest.run,
        step=manifest.step,
        seed=seed,
        seconds=time.monotonic() - began,
        node_types=tuple(probe.report(store) for probe in probes),
        tasks=tuple(task.report() for task in tasks),
    )


def read_types(store: Store, *, config: EvaluationConfig, seed: int, progress: Progress) -> list[LabelledType]:
    """Labels and splits of the types evaluated; of none where no task uses labels."""
    if not set(USES_LABELS) & set(config.tasks):
        return []
    names = labelled_types(store, chosen=config.node_type)
    progress.stage("read labels", total=sum(map(store.num_nodes, names)), unit="nodes")
    types = []
    for name in names:
        types.append(
            read_labelled(
                store,
                name,
                num_splits=config.num_splits,
                fractions=(config.train_fraction, config.val_fraction),
                sizes=config.sizes,
                seed=seed,
                source=config.split,
            )
        )
        progress.advance(store.num_nodes(name))
    return types


def make_tasks(
    name: TaskName,
    store: Store,
    topology: Topology,
    labelled: Sequence[LabelledType],
    *,
    config: EvaluationConfig,
    seed: int,
    pictures: Place,
) -> Sequence[FigureTask | PictureTask]:
    """The tasks that one name of `evaluation.tasks` stands for, apart from the probe."""
    match name:
        case "knn":
            return [KnnTask(kind, config=config.knn) for kind in labelled]
        case "few_shot":
            return [FewShotTask(kind, config=config.few_shot, seed=seed) for kind in labelled]
        case "clustering":
            return [ClusteringTask(kind, config=config.clustering, seed=seed) for kind in labelled]
        case "link":
            problem = link_problem(store, topology, config=config.link, seed=seed)
            return [
                LinkTask(problem, score=score, strengths=config.strengths)
                for score in dict.fromkeys(config.link.scores)
            ]
        case "picture":
            return picture_tasks(store, config=config, seed=seed, pictures=pictures)
        case "probe":
            return []


def picture_tasks(store: Store, *, config: EvaluationConfig, seed: int, pictures: Place) -> list[PictureTask]:
    """A picture of the chosen node type, else of each with labels, else of each; labelled nodes where there are any."""
    with_labels = [kind.name for kind in store.node_types if kind.has_label]
    names = [config.node_type] if config.node_type else with_labels or [kind.name for kind in store.node_types]
    tasks = []
    for name in names:
        index, live = store.type_index(name), store.live_ids(name)
        labels = np.full(store.num_nodes(name), -1, dtype=np.int64)
        if name in with_labels:
            labels[live] = store.node_column(name, "label").to_numpy()[live]
        ids = np.flatnonzero(labels >= 0) if (labels >= 0).any() else live
        tasks.append(
            PictureTask(index, name=name, labels=labels, ids=ids, config=config.picture, seed=seed, out=pictures)
        )
    return tasks


def wanted_by(tasks: Sequence[Task], *, num_types: int) -> Wanted:
    """The ids that any task looks at, ascending, of each node type."""
    wanted: Wanted = []
    for index in range(num_types):
        ids = [task.wanted[index] for task in tasks if index in task.wanted]
        wanted.append(np.unique(np.concatenate(ids)) if ids else np.empty(0, dtype=np.int64))
    return wanted
