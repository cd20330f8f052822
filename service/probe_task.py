"""The linear probe as a task of an evaluation: every kind of rows on the same splits."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from service.evaluation_report import RowsName, RowsReport, TypeReport, absent, summarise
from service.evaluation_rows import Rows
from service.labelled_rows import LabelledType
from service.probe import probe_splits
from storage.progress import Progress
from storage.store import Store


class ProbeTask:
    """The probe (`service.probe`) of one node type.

    Args:
        kind: labels and splits.
        strengths: values of C tried.
    """

    def __init__(self, kind: LabelledType, *, strengths: Sequence[float]) -> None:
        self.results: list[RowsReport] = []
        self._kind = kind
        self._strengths = strengths
        self._rows = kind.rows()

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Rows of all splits."""
        return {self._kind.index: self._rows}

    def score(self, rows: Rows, progress: Progress) -> None:
        """Probe one kind of rows on every split."""
        kind = self._kind
        began = time.monotonic()
        progress.stage(f"probe {kind.name}, {rows.name}", total=len(kind.splits), unit="splits")
        x_ND = rows.of(kind.index, self._rows)
        probes = []
        for result in probe_splits(
            x_ND,
            labels=kind.labels[self._rows],
            splits=[split.within(self._rows) for split in kind.splits],
            strengths=self._strengths,
            num_threads=torch.get_num_threads(),
        ):
            probes.append(result)
            progress.advance(1)
        seconds = rows.seconds + time.monotonic() - began
        self.results.append(summarise(rows.name, dim=x_ND.shape[1], probes=probes, seconds=seconds))

    def leave_out(self, name: RowsName, *, note: str) -> None:
        """Say why there is no score of a kind of rows."""
        self.results.append(absent(name, note=note))

    def report(self, store: Store) -> TypeReport:
        """What was found, after all rows have been scored."""
        kind, first = self._kind, self._kind.splits[0]
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
            results=tuple(self.results),
        )
