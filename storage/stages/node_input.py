"""One node type that an ingest or a change writes."""

from dataclasses import dataclass

from storage.feature_columns import FeatureColumns
from storage.tables import Table


@dataclass(frozen=True)
class NodeInput:
    """One node type to be written.

    Attributes:
        name: the type.
        table: its rows.
        known: the ids of the nodes that the store has already, in dense order, then those of `table`.
        base: how many nodes the store has already.
        segment: number of the segment to write.
        features: the table's feature columns; None without features.
        scale: of quantised features that the store has already; None to find it in the table.
        positions: file of uint32, the input position of each row, where that is not `base` + its row.
    """

    name: str
    table: Table
    known: Table
    base: int
    segment: int
    features: FeatureColumns | None
    scale: tuple[float, ...] | None = None
    positions: str | None = None
