"""The features of a node table as they are stored: batches of it converted and checked."""

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.feature_columns import WIDTH_REMEDY, WIDTH_RULE, FeatureColumns
from storage.offences import Offences

FINITE_REMEDY = "mend the values, or store zeros in their place with --nan zero"


@dataclass(frozen=True)
class FeatureRows:
    """Features of consecutive table rows.

    Attributes:
        rows: [num_rows, dim] of the stored dtype.
        num_zeroed: values that were NaN or infinite and became 0.
    """

    rows: NDArray[Any]
    num_zeroed: int


FeatureScale: TypeAlias = NDArray[np.float32]
"""[dim] what one step of a quantised int8 feature is worth, column by column"""

QUANTISED_MAX = 127


def convert_batch(
    batch: pa.RecordBatch,
    *,
    columns: FeatureColumns,
    scale: FeatureScale | None,
    nan: Literal["refuse", "zero"],
    offences: Offences,
    first_row: int,
) -> FeatureRows | None:
    """The features of a batch as they are stored; None, and the rows noted, when nulls or widths forbid it.

    Floats become float16 and float32 by rounding; a finite value that overflows counts as infinite. Integer dtypes
    take only values they can hold. With a scale, values become round(value / scale) in int8.

    Args:
        batch: columns `columns.names`.
        columns: the feature columns of the table.
        scale: of quantised features, from `largest_magnitudes`.
        nan: whether NaN and infinite values are refused or become 0.
        offences: told the rows that break a rule; their values are 0 in the result.
        first_row: table row of the batch's first.
    """
    values = _matrix(batch, columns=columns, offences=offences, first_row=first_row)
    if values is None:
        return None
    if scale is None:
        return _convert(values, columns=columns, nan=nan, offences=offences, first_row=first_row)
    exact = replace(columns, dtype="float32", converts=True)
    found = _convert(values, columns=exact, nan=nan, offences=offences, first_row=first_row)
    # by the division that makes a scale, so that no value is beyond a scale that was made of it
    beyond = np.abs(found.rows) / np.float32(QUANTISED_MAX) > scale
    if beyond.any():
        _note_values(
            found.rows, beyond, columns=columns, offences=offences, first_row=first_row,
            rule=f"quantised features reach as far as {QUANTISED_MAX} steps of the store's scale",
            remedy="scale the features as the stored ones are, or ingest all tables as a new store",
        )  # fmt: skip
    steps = np.rint(found.rows / np.where(scale > 0, scale, np.float32(1)))
    rows = np.clip(steps, -QUANTISED_MAX, QUANTISED_MAX).astype(np.int8)
    return FeatureRows(rows=rows, num_zeroed=found.num_zeroed)


def largest_magnitudes(batch: pa.RecordBatch, *, columns: FeatureColumns) -> NDArray[np.float32]:
    """Largest finite magnitude of each column of a batch, float32 [dim]; 0 where the batch breaks a rule."""
    values = _matrix(batch, columns=columns, offences=Offences(), first_row=0)
    if values is None or not len(values):
        return np.zeros(columns.dim, dtype=np.float32)
    with np.errstate(over="ignore"):
        magnitude = np.abs(values.astype(np.float32))
    largest: NDArray[np.float32] = np.where(np.isfinite(magnitude), magnitude, np.float32(0)).max(axis=0)
    return largest


def _matrix(
    batch: pa.RecordBatch, *, columns: FeatureColumns, offences: Offences, first_row: int
) -> NDArray[Any] | None:
    """The batch as [rows, dim] of its own dtype; None, and the rows noted, when nulls or widths forbid it."""
    if columns.is_list:
        column = batch.column(0)
        if _note_nulls(column.is_null(), name="features", offences=offences, first_row=first_row):
            return None
        if not pa.types.is_fixed_size_list(column.type):
            widths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            bad = np.flatnonzero(widths != columns.dim)
            if len(bad):
                offences.add(
                    bad + first_row,
                    column="features",
                    found=f"width {widths[bad[0]]}, {columns.dim} in the first row",
                    rule=WIDTH_RULE,
                    remedy=WIDTH_REMEDY,
                )
                return None
        flat = column.flatten()
        if flat.null_count:
            rows = np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False)) // columns.dim
            _note_null_rows(np.unique(rows) + first_row, name="features", offences=offences)
            return None
        values: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(-1, columns.dim)
        return values
    arrays = list[NDArray[Any]]()
    for name in columns.names:
        column = batch.column(name)
        if _note_nulls(column.is_null(), name=name, offences=offences, first_row=first_row):
            return None
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        arrays.append(column.to_numpy(zero_copy_only=False))
    return np.stack(arrays, axis=1)


def _note_nulls(is_null: pa.Array, *, name: str, offences: Offences, first_row: int) -> bool:
    rows = np.flatnonzero(is_null.to_numpy(zero_copy_only=False))
    if len(rows):
        _note_null_rows(rows + first_row, name=name, offences=offences)
    return len(rows) > 0


def _note_null_rows(rows: NDArray[np.int64], *, name: str, offences: Offences) -> None:
    offences.add(
        rows,
        column=name,
        found="null",
        rule=f"every row must have a value in column {name}",
        remedy="fill the column or remove the rows",
    )


def _convert(
    values: NDArray[Any],
    *,
    columns: FeatureColumns,
    nan: Literal["refuse", "zero"],
    offences: Offences,
    first_row: int,
) -> FeatureRows:
    """`values` [rows, dim] in the stored dtype, by the rules of `convert_batch`; bad values become 0."""
    dtype = np.dtype(columns.dtype)
    num_zeroed = 0
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        num_zeroed += int(np.count_nonzero(~finite))
        if nan == "refuse":
            _note_values(
                values, ~finite, columns=columns, offences=offences, first_row=first_row,
                rule="features must be finite", remedy=FINITE_REMEDY,
            )  # fmt: skip
        values = np.where(finite, values, values.dtype.type(0))
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rows = values.astype(dtype, copy=False)
        if values.dtype != dtype and not (finite := np.isfinite(rows)).all():
            num_zeroed += int(np.count_nonzero(~finite))
            if nan == "refuse":
                _note_values(
                    values, ~finite, columns=columns, offences=offences, first_row=first_row,
                    rule=f"features must be finite in {dtype}",
                    remedy=f"ask for a wider --feature-dtype, {FINITE_REMEDY}",
                )  # fmt: skip
            rows = np.where(finite, rows, dtype.type(0))
        return FeatureRows(rows=rows, num_zeroed=num_zeroed)
    if values.dtype != dtype:
        bounds = np.iinfo(dtype)
        lossy = (values < bounds.min) | (values > bounds.max)
        if values.dtype.kind == "f":
            lossy |= values != np.trunc(values)
        if lossy.any():
            _note_values(
                values, lossy, columns=columns, offences=offences, first_row=first_row,
                rule=f"features stored as {dtype} must be whole numbers from {bounds.min} to {bounds.max}",
                remedy="ask for --feature-dtype float16 or float32, or round and scale the features first",
            )  # fmt: skip
            values = np.where(lossy, values.dtype.type(0), values)
    return FeatureRows(rows=values.astype(dtype, copy=False), num_zeroed=num_zeroed)


def _note_values(
    values: NDArray[Any],
    bad: NDArray[np.bool_],
    *,
    columns: FeatureColumns,
    offences: Offences,
    first_row: int,
    rule: str,
    remedy: str,
) -> None:
    rows, features = np.nonzero(bad)
    name = "features" if columns.is_list else columns.names[features[0]]
    found = f"value {values[rows[0], features[0]]}"
    if columns.is_list:
        found += f" at index {features[0]}"
    offences.add(np.unique(rows) + first_row, column=name, found=found, rule=rule, remedy=remedy)
