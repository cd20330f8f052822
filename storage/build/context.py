"""What the stages of one ingest share: its settings, its place, its temporary files, its memory and workers."""

from dataclasses import dataclass

from storage.build.crew import Crew
from storage.build.stages import Stages
from storage.build.work import Work
from storage.feature_columns import FeatureColumns
from storage.ingest_settings import IngestSettings
from storage.place import Place
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


@dataclass(frozen=True)
class Context:
    """One ingest under way; `nodes` by their order in the store."""

    settings: IngestSettings
    nodes: list[NodeInput]
    place: Place
    work: Work
    crew: Crew
    stages: Stages

    @property
    def num_nodes(self) -> dict[str, int]:
        """Nodes of each type, those in the store included."""
        return {node.name: node.known.num_rows for node in self.nodes}
