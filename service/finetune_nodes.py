"""The labelled nodes that finetuning trains on, validates and tests with, and the order in which they are seeds.

Shapes: C classes. Dense ids count inside the node type, global ids over all types.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampling.seeds import SeedOrder
from service.few_shot import draw_shots
from service.finetune_section import FinetuneSection
from service.labelled_rows import LabelledType, check_fractions, labelled_types, read_labelled
from service.probe import SplitSizes
from storage.errors import BadInput
from storage.store import Store

NO_LIMIT = 2**62


@dataclass(frozen=True, eq=False)
class LabelledNodes:
    """One node type's nodes with labels; ids are dense, int64, ascending."""

    kind: LabelledType
    classes: NDArray[np.int64]
    """[C] labels that occur in any part, ascending"""
    train: NDArray[np.int64]
    """after the draw of labels a class"""
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    def class_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the class [n] of nodes of any part [n]."""
        return np.asarray(np.searchsorted(self.classes, self.kind.labels[ids]), dtype=np.int64)

    @property
    def majority_accuracy(self) -> float:
        """Percent of the test nodes that have the most frequent class of the training nodes."""
        counts = np.bincount(self.class_of(self.train), minlength=self.classes.shape[0])
        return 100.0 * float(np.mean(self.class_of(self.test) == np.argmax(counts)))


def read_nodes(store: Store, section: FinetuneSection, *, split_seed: int) -> LabelledNodes:
    """Labels and split of the node type to classify.

    Args:
        split_seed: of a random split, which is then the first that `evaluate` makes with the same fractions.

    Raises BadInput when the store has no labels, several node types have and none is chosen, a part of the split has
    none, or there is only one class to train on.
    """
    check_fractions(section="finetune", train=section.train_fraction, val=section.val_fraction)
    names = labelled_types(store, chosen=section.node_type, section="finetune")
    if len(names) > 1:
        raise BadInput(
            "finetune.node_type",
            f"unset, and node types {', '.join(names)} have labels",
            rule="one node type is classified",
            remedy=f"set finetune.node_type={names[0]} or another of them",
        )
    kind = read_labelled(
        store,
        names[0],
        num_splits=1,
        fractions=(section.train_fraction, section.val_fraction),
        sizes=SplitSizes(train=NO_LIMIT, val=section.max_val_rows, test=NO_LIMIT),
        seed=split_seed,
        source=section.split,
        section="finetune",
    )
    (split,) = kind.splits
    train = split.train
    if section.labels_per_class is not None:
        train = draw_shots(
            train, labels=kind.labels, shots=section.labels_per_class, seed=section.seed, words=(kind.index, 0)
        )
    return LabelledNodes(
        kind=kind, classes=np.unique(kind.labels[split.rows()]), train=train, val=split.val, test=split.test
    )


@dataclass(frozen=True)
class RoundOrder(SeedOrder):
    """Rounds in place of epochs: `passes` passes over the training nodes, then one over the validation nodes.

    So one stream of batches serves both, and the number of a batch says all that resuming needs. The inherited
    `seeds` are the training nodes; each pass has an order of its own.
    """

    val: NDArray[np.int64]
    """global ids of the validation nodes"""
    passes: int

    @property
    def train_steps(self) -> int:
        """Batches of training nodes of a round, which come first."""
        return self.passes * super().steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a round."""
        return self.train_steps + -(-int(self.val.shape[0]) // self.seeds_per_step)

    def num_in_step(self, *, step: int) -> int:
        """Seeds of batch `step` of any round."""
        if step < self.train_steps:
            return super().num_in_step(step=step % super().steps_per_epoch)
        return min(self.seeds_per_step, int(self.val.shape[0]) - (step - self.train_steps) * self.seeds_per_step)

    def global_batch(self, *, epoch: int, step: int) -> NDArray[np.int64]:
        """Global ids of the seeds of batch `step` of round `epoch`."""
        if step < self.train_steps:
            number, within = divmod(step, super().steps_per_epoch)
            return super().global_batch(epoch=epoch * self.passes + number, step=within)
        start = (step - self.train_steps) * self.seeds_per_step
        return self.val[start : start + self.num_in_step(step=step)]


def round_order(store: Store, nodes: LabelledNodes, section: FinetuneSection, *, seed: int) -> RoundOrder:
    """The order of a finetuning's seeds under `seed`."""
    first = store.type_offsets[nodes.kind.index]
    return RoundOrder(
        seeds=nodes.train + first,
        num_nodes=int(store.type_offsets[-1]),
        seeds_per_step=section.seeds_per_step,
        seed=seed,
        val=nodes.val + first,
        passes=section.validate_every,
    )
