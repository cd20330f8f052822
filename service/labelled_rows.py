"""Which rows of a store are probed: labels, and the splits of the data or random ones."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from service.probe import Split, SplitSizes, limited, random_split
from storage.columns import SPLITS
from storage.errors import BadInput
from storage.store import Store

PARTS = SPLITS[:-1]
"""nodes of the last split are in no part of a probe"""


SplitSource = Literal["auto", "data", "random"]


@dataclass(frozen=True)
class LabelledType:
    """A node type's labels and splits; row numbers are dense ids."""

    name: str
    index: int
    """number of the type in the store"""
    labels: NDArray[np.int64]
    """[num_nodes]; -1 unknown"""
    num_labelled: int
    num_classes: int
    kind: Literal["data", "random"]
    splits: tuple[Split, ...]
    available: tuple[int, int, int]
    """rows of train, val and test before the limits"""

    def rows(self) -> NDArray[np.int64]:
        """Rows that any split uses, ascending."""
        return np.unique(np.concatenate([split.rows() for split in self.splits]))


def check_fractions(*, section: str, train: float, val: float) -> None:
    """BadInput where random splits by the fractions of a section leave nothing to test on."""
    if train + val >= 1.0:
        raise BadInput(
            f"{section}.train_fraction, {section}.val_fraction",
            f"{train} + {val}",
            rule="both together leave nodes to test on",
            remedy="lower one of them",
        )


def labelled_types(store: Store, *, chosen: str | None, section: str = "evaluation") -> list[str]:
    """The chosen node type, or all that have labels; BadInput when there is none. `section` is of the run file."""
    found = [kind.name for kind in store.node_types if kind.has_label]
    if chosen is None and found:
        return found
    if chosen is not None:
        store.type_index(chosen)  # BadInput for an unknown name
        if chosen in found:
            return [chosen]
    raise BadInput(
        store.place.url if chosen is None else f"{section}.node_type={chosen}",
        "no labels",
        rule=f"section {section} needs a node type with labels"
        + (f"; this store has them for {', '.join(found)}" if found else ""),
        remedy="ingest a node table with a column `label`" if not found else "choose one of these",
    )


def read_labelled(
    store: Store,
    node_type: str,
    *,
    num_splits: int,
    fractions: tuple[float, float],
    sizes: SplitSizes,
    seed: int,
    source: SplitSource = "auto",
    section: str = "evaluation",
) -> LabelledType:
    """Labels and splits of one node type.

    Args:
        source: data: the split of the data; random: `num_splits` random ones; auto: the data's where any node is in
            one, else random ones.
        section: of the run file, where these settings come from.

    Raises BadInput when a part of the data's split is empty or it has none but is asked for, and when there are too
    few labels or classes to probe.
    """
    index = store.type_index(node_type)
    info = store.node_types[index]
    place = f"{store.place.url}, node type {node_type}"
    labels = np.array(store.node_column(node_type, "label").to_numpy(), dtype=np.int64)
    labels[store.deleted(node_type)] = -1
    labelled = np.flatnonzero(labels >= 0)
    available: tuple[int, int, int]
    data = data_split(store, node_type, labels) if info.has_split and source != "random" else None
    if data is None and source == "data":
        raise BadInput(
            f"{section}.split=data, node type {node_type}",
            "no node is in a split",
            rule="the data's own split needs a column `split` in the node table",
            remedy=f"set {section}.split to random, or ingest a table with that column",
        )
    if data is not None:
        available = (data.train.shape[0], data.val.shape[0], data.test.shape[0])
        if min(available) == 0:
            raise BadInput(
                f"{place}, column split",
                f"{available[0]} train, {available[1]} val and {available[2]} test nodes with a label",
                rule="a split has labelled nodes in all three parts",
                remedy="complete the column `split`, or leave it out for random splits",
            )
        splits: tuple[Split, ...] = (limited(data, sizes=sizes, seed=seed, words=(index,)),)
        labelled = data.rows()
    else:
        whole = SplitSizes(*[labelled.shape[0]] * 3)
        first = random_split(labelled, fractions=fractions, sizes=whole, seed=seed, words=(index, 0))
        available = (first.train.shape[0], first.val.shape[0], first.test.shape[0])
        if min(available) == 0:
            raise BadInput(
                f"{place}, column label",
                f"{labelled.shape[0]} labelled nodes",
                rule=f"a random split with shares {fractions} needs a node in each of train, val and test",
                remedy=f"label more nodes, or choose another type by {section}.node_type",
            )
        splits = tuple(
            random_split(labelled, fractions=fractions, sizes=sizes, seed=seed, words=(index, number))
            for number in range(num_splits)
        )
    if any(np.unique(labels[split.train]).shape[0] < 2 for split in splits):
        raise BadInput(
            f"{place}, column label",
            "training nodes of one class only",
            rule="a probe tells classes apart",
            remedy=f"label nodes of two classes or more, or raise {section}.train_fraction",
        )
    return LabelledType(
        name=node_type,
        index=index,
        labels=labels,
        num_labelled=labelled.shape[0],
        num_classes=np.unique(labels[labelled]).shape[0],
        kind="random" if data is None else "data",
        splits=splits,
        available=available,
    )


def data_split(store: Store, node_type: str, labels: NDArray[np.int64]) -> Split | None:
    """The labelled rows of the data's own split; None where every node's split is `none`."""
    column = store.node_column(node_type, "split")
    inside = [np.asarray(pc.equal(column, part).fill_null(False).to_numpy()) for part in PARTS]
    if not any(part.any() for part in inside):
        return None
    train, val, test = (np.flatnonzero(part & (labels >= 0)) for part in inside)
    return Split(train=train, val=val, test=test)
