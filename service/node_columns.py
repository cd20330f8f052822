"""What labels, splits and times of a node type are about, from one pass over its ids files."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.columns import SPLITS
from storage.place import Place
from storage.progress import Progress
from storage.schema import NodeType
from storage.streams import column_batches


@dataclass(frozen=True)
class ColumnReport:
    """Fields are None where the type has no such column."""

    labels: dict[str, int] | None
    """num_classes: distinct labels; num_labelled: nodes whose label is known (not -1)"""
    splits: dict[str, int] | None
    """nodes of train, val, test and none"""
    time_range: list[int] | None
    """first and last time"""


def read_columns(place: Place, kind: NodeType, *, live: NDArray[np.bool_], progress: Progress) -> ColumnReport:
    """Read the columns of the `live` rows [num_nodes] in batches. Memory: a batch and the distinct labels.

    Raises DamagedStore for a changed page.
    """
    columns = [name for name, has in kind.columns.items() if has]
    labels = np.empty(0, dtype=np.int64)
    num_labelled = 0
    splits: Counter[str] = Counter()
    times: list[int] = []
    first = 0
    for stored in column_batches(place, kind, columns) if columns else ():
        batch = stored.filter(pa.array(live[first : first + stored.num_rows]))
        first += stored.num_rows
        if kind.has_label:
            values = batch.column("label").to_numpy()
            known = values[values >= 0]
            num_labelled += known.shape[0]
            labels = np.union1d(labels, known)
        if kind.has_split:
            found = pc.value_counts(batch.column("split"))
            splits.update({row["values"]: row["counts"] for row in found.to_pylist()})
        if kind.has_timestamp and batch.num_rows:
            ends = pc.min_max(batch.column("timestamp"))
            times += [ends["min"].as_py(), ends["max"].as_py()]
            times = [min(times), max(times)]
        progress.advance(stored.num_rows)
    if not columns:
        progress.advance(kind.num_nodes)
    return ColumnReport(
        labels={"num_classes": labels.shape[0], "num_labelled": num_labelled} if kind.has_label else None,
        splits={name: splits[name] for name in SPLITS if splits[name]} if kind.has_split else None,
        time_range=times if kind.has_timestamp else None,
    )
