"""The rows that a student learns from: features and the teacher's rows of the same nodes, streamed in buffers.

    teacher's Parquet -> a flat file in the work folder, once; means and scales of both tables in the same pass
    epoch -> pieces of consecutive rows in a drawn order -> buffers -> mini-batches in a drawn order

Pieces are read in a few large reads, so nothing needs to fit in memory but a buffer.
Shapes: N nodes of the type that are not deleted, F feature columns, D columns of the teacher's rows.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.distill_section import DistillSection
from service.distill_teacher import Teacher
from service.feature_values import as_values
from service.probe import shuffled
from storage.arrays import ArrayWriter
from storage.errors import BadInput, DamagedStore
from storage.features import FeatureFile, StoredFeatures
from storage.place import Place
from storage.progress import Progress

DISTILL_TAG = 0xD157
"""a word of the keys of orders, which tells them from those of splits"""
PIECE_ROWS = 4096
MAX_HELD_OUT = 65536
TARGETS = "targets.npy"
HELD_OUT, PIECES, ROWS = 0, 1, 2
"""what an order is of"""


@dataclass(frozen=True)
class Moments:
    """Mean of each column, and one scale for all: a table with them taken out has variance 1 on the whole."""

    mean: NDArray[np.float64]
    scale: float


class MomentSums:
    """Sums over rows [n, C], in float64."""

    def __init__(self, num_columns: int) -> None:
        self._count = 0
        self._sum = np.zeros(num_columns)
        self._squares = np.zeros(num_columns)

    def add(self, rows_NC: NDArray[np.float32]) -> None:
        """Take rows in."""
        wide = rows_NC.astype(np.float64)
        self._count += wide.shape[0]
        self._sum += wide.sum(0)
        self._squares += np.square(wide).sum(0)

    def moments(self) -> Moments:
        """Of all rows taken in; the scale of constant columns is 1."""
        mean = self._sum / self._count
        variance = float(np.maximum(self._squares / self._count - np.square(mean), 0.0).mean())
        return Moments(mean=mean, scale=variance**0.5 if variance > 0.0 else 1.0)


@dataclass(frozen=True, eq=False)
class DistillRows:
    """Both tables; a place is a node's number among those that are not deleted."""

    ids: NDArray[np.int64]
    """[N] dense ids"""
    features: StoredFeatures
    feature_scale: tuple[float, ...] | None
    targets: StoredFeatures
    inputs: Moments
    outputs: Moments

    def read_inputs(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features [n, F] as numbers, of ascending places [n]."""
        found = np.empty((places.shape[0], self.features.dim), dtype=self.features.dtype)
        self.features.gather(self.ids[places], found)
        return as_values(found, scale=self.feature_scale)

    def read(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features [n, F] and the teacher's rows [n, D], float32, of ascending places [n]."""
        wanted = np.empty((places.shape[0], self.targets.dim), dtype=np.float32)
        self.targets.gather(places, wanted)
        return torch.from_numpy(self.read_inputs(places)), torch.from_numpy(wanted)


def open_rows(teacher: Teacher, *, work: Place, opened: ExitStack, progress: Progress) -> DistillRows:
    """Lay the teacher's rows down in `work` and open both tables, closed by `opened`.

    Raises DamagedStore when the teacher's rows are not those of the nodes.
    """
    store, name = teacher.store, teacher.node_type
    kind, ids = store.node_type(name), store.live_ids(name)
    features = store.features(name)
    assert features is not None, "see `service.distill_teacher.featured_type`"
    opened.enter_context(closing(features))
    inputs, outputs = MomentSums(features.dim), MomentSums(teacher.dim)
    progress.stage("read teacher", total=ids.shape[0], unit="nodes")
    first = 0
    with ArrayWriter(work, TARGETS, dtype=np.float32, shape=(ids.shape[0], teacher.dim)) as writer:
        for rows_ND in teacher.read():
            part = ids[first : first + rows_ND.shape[0]]
            first += rows_ND.shape[0]
            if part.shape[0] < rows_ND.shape[0] or rows_ND.shape[1] != teacher.dim:
                raise wrong_size(teacher, first, num_nodes=ids.shape[0])
            found = np.empty((part.shape[0], features.dim), dtype=features.dtype)
            features.gather(part, found)
            inputs.add(as_values(found, scale=kind.feature_scale))
            outputs.add(rows_ND)
            writer.write(rows_ND)
            progress.advance(part.shape[0])
        if first < ids.shape[0]:
            raise wrong_size(teacher, first, num_nodes=ids.shape[0])
    targets = FeatureFile(work, writer.info, num_rows=ids.shape[0], dim=teacher.dim, dtype=np.dtype(np.float32))
    opened.enter_context(closing(targets))
    return DistillRows(
        ids=ids,
        features=features,
        feature_scale=kind.feature_scale,
        targets=targets,
        inputs=inputs.moments(),
        outputs=outputs.moments(),
    )


def wrong_size(teacher: Teacher, num_rows: int, *, num_nodes: int) -> DamagedStore:
    """The error for a teacher that has not one row a node."""
    return DamagedStore(
        teacher.place.url,
        f"{num_rows} rows or more for {num_nodes} nodes" if num_rows > num_nodes else f"{num_rows} rows",
        rule=f"the teacher has a row of {teacher.dim} columns for each of the {num_nodes} nodes",
        remedy="write it again",
    )


def held_out_places(num_rows: int, section: DistillSection) -> NDArray[np.int64]:
    """Places that are not learned from, ascending: the share of the section, at least one and at most MAX_HELD_OUT.

    Raises BadInput where that leaves none to learn from.
    """
    size = min(MAX_HELD_OUT, max(1, round(section.held_out * num_rows)))
    if size >= num_rows:
        raise BadInput(
            f"distill.held_out={section.held_out}",
            f"{size} of {num_rows} nodes",
            rule="a student learns from some nodes and is judged on others",
            remedy="lower it" if num_rows > 1 else "distill a node type with more nodes",
        )
    order = shuffled(num_rows, seed=section.seed, words=(DISTILL_TAG, HELD_OUT))
    return np.sort(order[:size])


def buffers(
    num_rows: int, section: DistillSection, *, held_out: NDArray[np.int64], epoch: int
) -> Iterator[NDArray[np.int64]]:
    """The places of one epoch's buffers, each ascending; together all that are not held out, once."""
    num_pieces = -(-num_rows // PIECE_ROWS)
    pieces = shuffled(num_pieces, seed=section.seed, words=(DISTILL_TAG, PIECES, epoch))
    size = max(1, section.rows_per_buffer // PIECE_ROWS)
    for start in range(0, num_pieces, size):
        parts = [
            np.arange(piece * PIECE_ROWS, min((piece + 1) * PIECE_ROWS, num_rows), dtype=np.int64)
            for piece in np.sort(pieces[start : start + size])
        ]
        places = np.concatenate(parts)
        kept = places[~np.isin(places, held_out, assume_unique=True)]
        if kept.size:
            yield kept


def steps_of_buffer(size: int, section: DistillSection, *, epoch: int, number: int) -> Iterator[Tensor]:
    """Rows of a buffer for one step after another, int64, in an order drawn for buffer `number` of the epoch."""
    order = torch.from_numpy(shuffled(size, seed=section.seed, words=(DISTILL_TAG, ROWS, epoch, number)))
    yield from order.split(section.rows_per_step)
