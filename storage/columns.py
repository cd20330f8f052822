"""The rules of the interchange columns other than features: each takes a column as read and gives it checked.

`first_row` is the table row of the column's first value. A rule that breaks for the type of a column is
raised at once; one that breaks in rows is noted in `Offences`, which the caller raises after its pass.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import BadInput
from storage.offences import Offences
from storage.schema import IdType
from storage.tables import Table

SPLITS = ("train", "val", "test", "none")
UNKNOWN_LABEL = -1
IDS = {"int64": pa.int64(), "string": pa.large_string()}  # large: one array may pass 2 GiB of text


def id_type(table: Table, column: str) -> IdType:
    """Which ids `column` holds; BadInput unless integers that fit int64, or strings."""
    kind = _kind(table.schema.field(column).type)
    if kind is None:
        raise _wrong_type(table, column, wanted="int64 or string")
    return kind


def ids(column: pa.ChunkedArray, *, kind: IdType) -> pa.ChunkedArray:
    """The column as int64 or large_string; call `refuse_nulls` for it first."""
    return column.cast(IDS[kind])


def check_integer(table: Table, column: str) -> None:
    """BadInput unless the column holds integers that fit int64 (labels, timestamps)."""
    if not _is_int64(table.schema.field(column).type):
        raise _wrong_type(table, column, wanted="int64")


def check_weight(table: Table) -> None:
    """BadInput unless the column `weight` holds numbers."""
    found = table.schema.field("weight").type
    if not (pa.types.is_floating(found) or pa.types.is_integer(found)):
        raise _wrong_type(table, "weight", wanted="float32")


def check_split(table: Table) -> None:
    """BadInput unless the column `split` holds strings."""
    if _kind(table.schema.field("split").type) != "string":
        raise _wrong_type(table, "split", wanted="string")


def refuse_nulls(offences: Offences, column: pa.ChunkedArray, *, name: str, first_row: int) -> bool:
    """Note rows without a value; True when there are any (the column is then not to be read further)."""
    if column.null_count == 0:
        return False
    rows = np.flatnonzero(column.is_null().to_numpy()) + first_row
    offences.add(
        rows,
        column=name,
        found="null",
        rule=f"every row must have a value in column {name}",
        remedy="fill the column or remove the rows",
    )
    return True


def labels(offences: Offences, column: pa.ChunkedArray, *, first_row: int) -> NDArray[np.int64]:
    """Labels [n] int64, -1 unknown; values below are noted."""
    values: NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    bad = np.flatnonzero(values < UNKNOWN_LABEL)
    if len(bad):
        offences.add(
            bad + first_row,
            column="label",
            found=f"label {values[bad[0]]}",
            rule="a label must be a class number from 0, or -1 when unknown",
            remedy="number the classes from 0",
        )
    return values


def splits(offences: Offences, column: pa.ChunkedArray, *, first_row: int) -> pa.ChunkedArray:
    """Splits as strings; other values than train, val, test and none are noted."""
    values = column.cast(pa.string())
    bad = np.flatnonzero(~pc.is_in(values, value_set=pa.array(SPLITS)).to_numpy())
    if len(bad):
        offences.add(
            bad + first_row,
            column="split",
            found=f"split {values[int(bad[0])].as_py()!r}",
            rule=f"a split must be one of {', '.join(SPLITS)}",
            remedy="rename the values, for example valid to val",
        )
    return values


def weights(offences: Offences, column: pa.ChunkedArray, *, first_row: int) -> NDArray[np.float32]:
    """Weights [n] float32; NaN, infinite (also by overflow of float32) and negative ones are noted."""
    given: NDArray[Any] = column.to_numpy()
    with np.errstate(over="ignore"):
        values = given.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        offences.add(
            bad + first_row,
            column="weight",
            found=f"weight {given[bad[0]]}",
            rule="a weight must be finite in float32",
            remedy="remove the edges or give them a weight",
        )
    bad = np.flatnonzero(given < 0)  # as given: the smallest would round to 0
    if len(bad):
        offences.add(
            bad + first_row,
            column="weight",
            found=f"weight {given[bad[0]]}",
            rule="a weight must be >= 0",
            remedy="shift or clip the weights, or keep signed values out of the column weight",
        )
    return values


def _kind(found: pa.DataType) -> IdType | None:
    if pa.types.is_dictionary(found):  # pandas writes categories so
        found = found.value_type
    if _is_int64(found):
        return "int64"
    is_string = pa.types.is_string(found) or pa.types.is_large_string(found)
    return "string" if is_string or pa.types.is_string_view(found) else None


def _is_int64(found: pa.DataType) -> bool:
    return bool(pa.types.is_integer(found) and not pa.types.is_uint64(found))


def _wrong_type(table: Table, column: str, *, wanted: str) -> BadInput:
    return BadInput(
        table.where(column),
        f"type {table.schema.field(column).type} ({table.num_rows} rows)",
        rule=f"column {column} must be {wanted}",
        remedy=f"cast the column to {wanted.split(' or ', maxsplit=1)[0]}",
    )
