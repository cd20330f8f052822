"""What a table, or a store itself, must be like for a change: the ids, columns and features that are there."""

from storage import columns
from storage.errors import BadInput
from storage.feature_columns import FeatureColumns, find_feature_columns
from storage.ingest_settings import IngestSettings
from storage.schema import NodeType
from storage.store import Store
from storage.tables import Table


def refuse_other_ids(kind: NodeType, table: Table) -> None:
    """BadInput when a table's ids are of another type than the stored ones."""
    if columns.id_type(table, "id") != kind.id_type:
        raise BadInput(
            table.where("id"),
            f"type {table.schema.field('id').type} ({table.num_rows} rows)",
            rule=f"ids of node type {kind.name} are {kind.id_type} in the store",
            remedy=f"cast the column to {kind.id_type}",
        )


def refuse_other_columns(table: Table, there: dict[str, bool], *, what: str) -> None:
    """BadInput when a table lacks a column that the store has, or has one that it lacks."""
    for name, is_stored in there.items():
        if (name in table.schema.names) != is_stored:
            raise BadInput(
                table.where(name),
                "missing" if is_stored else f"there, but the store's {what} have none",
                rule=f"{what} are appended with the columns that the store has",
                remedy=f"{'add' if is_stored else 'leave out'} the column, or ingest all tables as a new store",
            )


def features_like(kind: NodeType, table: Table, settings: IngestSettings) -> FeatureColumns | None:
    """The feature columns of a table; BadInput unless they are like the stored ones."""
    dtype = "float32" if settings.quantize else settings.feature_dtype
    found = find_feature_columns(table, named=settings.feature_columns, dtype=dtype)
    if found is not None and settings.quantize:
        found = found.quantised()
    here = "no features" if found is None else f"{found.dim} {found.dtype} features"
    own = "no features" if kind.feature_dim is None else f"{kind.feature_dim} {kind.feature_dtype} features"
    if here != own:
        raise BadInput(
            table.where("features"),
            here,
            rule=f"nodes of type {kind.name} have {own} in the store",
            remedy="write them with that width and type, or ingest all tables as a new store",
        )
    return found


def refuse_in_place(store: Store, kinds: tuple[NodeType, ...], *, what: str) -> None:
    """BadInput when features of one of the types are not in the store."""
    for kind in kinds:
        if any(segment.in_place is not None for segment in kind.segments):
            raise BadInput(
                f"{store.place.url}, node type {kind.name}",
                "its features stay in Parquet",
                rule=f"{what} rewrites features that are in the store",
                remedy="ingest the tables again as a new store",
            )
