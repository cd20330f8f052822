"""Which columns of a node table are its features: their width, the type they have and the type they get."""

from dataclasses import dataclass, replace
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import BadInput
from storage.schema import Dtype
from storage.tables import Table

STORED_DTYPES: dict[pa.DataType, Dtype] = {
    pa.float32(): "float32",
    pa.float16(): "float16",
    pa.uint8(): "uint8",
    pa.int8(): "int8",
}
WIDTH_RULE = "every row must have the same number of features, at least one"
WIDTH_REMEDY = "pad or cut the rows to one width"


@dataclass(frozen=True)
class FeatureColumns:
    """Where the features of a node type stand.

    Attributes:
        names: `("features",)`, a list column, or named numeric columns, one feature each.
        is_list: whether it is the list column.
        dim: features per row.
        dtype: what the store holds.
        converts: whether another dtype than the table's was asked for.
    """

    names: tuple[str, ...]
    is_list: bool
    dim: int
    dtype: Dtype
    converts: bool

    def quantised(self) -> "FeatureColumns":
        """The same columns, stored as int8 steps."""
        return replace(self, dtype="int8", converts=True)


def find_feature_columns(table: Table, *, named: tuple[str, ...] | None, dtype: Dtype | None) -> FeatureColumns | None:
    """The features of an opened node table, by its schema; None when it has none.

    Named columns win where the table has them. Without `dtype` a list column keeps its type, which must be a
    stored one; named columns keep a stored type that all share and become float32 otherwise.

    Raises:
        BadInput: some but not all of `named` exist, or the columns are not numbers.
    """
    present = [name for name in named or () if name in table.schema.names]
    if named is not None and present:
        missing = [name for name in named if name not in present]
        if missing:
            raise BadInput(
                table.where(missing[0]),
                f"missing, as are {len(missing) - 1} more of the {len(named)} feature columns",
                rule="a table that has one of the named feature columns must have all",
                remedy="add the column, or leave it out of the feature columns",
            )
        return _named_columns(table, named, dtype=dtype)
    if "features" in table.schema.names:
        return _list_column(table, dtype=dtype)
    return None


def _named_columns(table: Table, named: tuple[str, ...], *, dtype: Dtype | None) -> FeatureColumns:
    types = [table.schema.field(name).type for name in named]
    for name, found in zip(named, types, strict=True):
        if not (_is_number(found) or pa.types.is_boolean(found)):
            raise BadInput(
                table.where(name),
                f"type {found} ({table.num_rows} rows)",
                rule="a named feature column must hold numbers",
                remedy="encode the column as numbers, or leave it out of the feature columns",
            )
    shared = STORED_DTYPES.get(types[0], "float32") if len(set(types)) == 1 else "float32"
    return FeatureColumns(names=named, is_list=False, dim=len(named), dtype=dtype or shared, converts=dtype is not None)


def _list_column(table: Table, *, dtype: Dtype | None) -> FeatureColumns:
    found = table.schema.field("features").type
    is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    choices = ", ".join(get_args(Dtype))
    if not is_list or not _is_number(found.value_type):
        raise BadInput(
            table.where("features"),
            f"type {found} ({table.num_rows} rows)",
            rule=f"column features must be a list of {choices}",
            remedy="write a fixed-size list, or name numeric columns as the feature columns",
        )
    if dtype is None and found.value_type not in STORED_DTYPES:
        raise BadInput(
            table.where("features"),
            f"type {found} ({table.num_rows} rows)",
            rule=f"features are stored as {choices}",
            remedy="ask for a conversion with --feature-dtype float32, or cast the column",
        )
    dim = found.list_size if pa.types.is_fixed_size_list(found) else _first_width(table)
    if dim == 0:
        raise BadInput(
            table.place(0, "features"),
            f"width 0 (1 of {table.num_rows} rows)"
            if not pa.types.is_fixed_size_list(found)
            else f"width 0 ({table.num_rows} rows)",
            rule=WIDTH_RULE,
            remedy=WIDTH_REMEDY,
        )
    return FeatureColumns(
        names=("features",),
        is_list=True,
        dim=dim,
        dtype=dtype or STORED_DTYPES[found.value_type],
        converts=dtype is not None,
    )


def _first_width(table: Table) -> int:
    """The width of the first row of a variable-size list column."""
    for _, batch in table.batches(["features"], max_rows=1024):
        widths = pc.list_value_length(batch.column(0)).drop_null()
        if len(widths):
            return int(widths[0].as_py())
    raise BadInput(
        table.place(0, "features"),
        f"null ({table.num_rows} of {table.num_rows} rows)",
        rule="every row must have a value in column features",
        remedy="fill the column or remove the rows",
    )


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
