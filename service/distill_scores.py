"""How good a student is beside its teacher: the linear probe for embeddings, test accuracy for labels.

Test nodes are among those that the student learned the teacher's rows of, but for the share that is held out; of labels
it saw none that the teacher did not see.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from service.baselines import raw_rows
from service.distill_rows import DistillRows
from service.distill_teacher import Teacher
from service.embedding_files import EmbeddingManifest, read_manifest
from service.evaluation_rows import embedded_rows
from service.labelled_rows import LabelledType, read_labelled
from service.probe import probe_splits
from service.run_file import RunFile
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress


@dataclass(frozen=True)
class Scored:
    """Test accuracies in percent, of the probe as means over the splits of section `evaluation`."""

    score: str
    """what was measured"""
    test_rows: int
    teacher: float
    student: float
    raw: float | None
    """of the raw features, by the probe"""


def probed_labels(run: RunFile, teacher: Teacher, *, progress: Progress) -> LabelledType | None:
    """Labels and splits for `probe_scores`; None, with a note, where the teacher's node type has none that serve.

    Also None for a teacher of classes, which needs no probe.
    """
    store, config = teacher.store, run.evaluation
    if teacher.nodes is not None or not store.node_type(teacher.node_type).has_label:
        return None
    try:
        return read_labelled(
            store,
            teacher.node_type,
            num_splits=config.num_splits,
            fractions=(config.train_fraction, config.val_fraction),
            sizes=config.sizes,
            seed=run.run.seed,
            source=config.split,
        )
    except BadInput as error:  # a student needs no labels
        progress.note(f"no probe: {error}")
        return None


def probe_scores(
    run: RunFile, teacher: Teacher, kind: LabelledType, *, place: Place, rows: DistillRows, progress: Progress
) -> Scored:
    """The probe of section `evaluation` on the teacher's embeddings, the student's in `place`, and the features."""
    store, config = teacher.store, run.evaluation
    wanted = kind.rows()

    def accuracy_of(x_ND: NDArray[np.float32]) -> float:
        probes = probe_splits(
            x_ND,
            labels=kind.labels[wanted],
            splits=[split.within(wanted) for split in kind.splits],
            strengths=config.strengths,
            num_threads=torch.get_num_threads(),
        )
        return 100.0 * float(np.mean([found.test_accuracy for found in probes]))

    def embeddings_in(folder: Place, manifest: EmbeddingManifest) -> NDArray[np.float32]:
        return embedded_rows(store, teacher.node_type, manifest=manifest, place=folder, rows=wanted, progress=progress)

    assert teacher.manifest is not None
    raw = raw_rows(
        rows.features, scale=rows.feature_scale, rows=wanted, name=teacher.node_type, progress=progress
    )  # fmt: skip
    taught = embeddings_in(teacher.place, teacher.manifest)
    learned = embeddings_in(place, read_manifest(place))
    progress.stage("probe", total=3, unit="tables")
    accuracies = []
    for table in (taught, learned, raw):
        accuracies.append(accuracy_of(table))
        progress.advance(1)
    return Scored("linear probe", kind.splits[0].test.shape[0], *accuracies)


def class_scores(teacher: Teacher, predicted: NDArray[np.int64], *, ids: NDArray[np.int64]) -> Scored:
    """Accuracy of the teacher's classes and of the student's on the classifier's test nodes.

    Args:
        predicted: number of the class of every node in row order.
        ids: dense ids [N] in the same order.
    """
    nodes = teacher.nodes
    assert nodes is not None
    taught = np.concatenate([rows_NC.argmax(1) for rows_NC in teacher.read()])
    places = np.searchsorted(ids, nodes.test)
    wanted = nodes.class_of(nodes.test)
    return Scored(
        score="test accuracy",
        test_rows=nodes.test.shape[0],
        teacher=100.0 * float(np.mean(taught[places] == wanted)),
        student=100.0 * float(np.mean(predicted[places] == wanted)),
        raw=None,
    )
