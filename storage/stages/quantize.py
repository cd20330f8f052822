"""The scale of quantised features: one pass over a node table for the largest magnitude of every column.

A value is stored as round(value / scale) in int8 with scale = largest magnitude / 127, column by column: symmetric
uniform quantisation (Jacob et al., CVPR 2018, section 2.1, with zero point 0).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.feature_columns import FeatureColumns
from storage.feature_rows import QUANTISED_MAX, largest_magnitudes
from storage.stages.crew import Crew
from storage.tables import Table, TablePart

_READ_ROWS = 1 << 16


@dataclass(frozen=True)
class _Task:
    table: Table
    part: TablePart
    columns: FeatureColumns


def column_scales(table: Table, *, columns: FeatureColumns, crew: Crew) -> list[float]:
    """What one step of each feature column is worth, [dim]; 0 for a column of zeros."""
    rows = crew.budget.rows(16 * columns.dim)
    largest = np.zeros(columns.dim, dtype=np.float32)
    tasks = [_Task(table, part, columns) for part in table.parts(min_rows=rows)]
    for found in crew.executor.map(_largest, tasks):
        largest = np.maximum(largest, found)
    scales: list[float] = (largest / np.float32(QUANTISED_MAX)).tolist()
    return scales


def _largest(task: _Task) -> NDArray[np.float32]:
    largest = np.zeros(task.columns.dim, dtype=np.float32)
    for _, batch in task.table.read_part(task.part, task.columns.names, max_rows=_READ_ROWS):
        largest = np.maximum(largest, largest_magnitudes(batch, columns=task.columns))
    return largest
