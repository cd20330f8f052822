"""What a model must know of a graph: node types with their feature widths, and relations between types.

A model trained on one store works on any other whose types, feature widths and relations are equal; how features are
stored may differ, for they are read as numbers (`service.feature_values`). Rows that are learned by node
(`service.encoders.id_embedding`) bind it to the nodes of one store.
"""

from dataclasses import dataclass

from storage.store import Store


@dataclass(frozen=True)
class NodeTypeSchema:
    """One node type."""

    name: str
    feature_dim: int | None
    """columns of the feature table; None where the type has no features"""
    feature_dtype: str | None
    """float32, float16, uint8 or int8; None where the type has no features"""
    feature_scale: tuple[float, ...] | None = None
    """[feature_dim] what a step of quantised int8 features is worth; None where features are numbers as they are"""
    num_nodes: int | None = None
    """of the store, deleted ones included; None where the schema is of none"""
    numbering: tuple[str, ...] = ()
    """hex checksums, one a segment, of what gives nodes their dense ids: append makes it longer, compact another"""


@dataclass(frozen=True)
class RelationSchema:
    """One relation."""

    name: str
    """source:name:target, as `str(storage.schema.Relation)`"""
    source_type: int
    """index of the source type"""
    target_type: int
    """index of the target type"""
    reverse_of: int | None = None
    """index of the relation whose edges this one holds turned round, its own where it is symmetric; None for none"""


@dataclass(frozen=True)
class GraphSchema:
    """Node types and relations, in the store's order; a batch's type and relation numbers index them."""

    node_types: tuple[NodeTypeSchema, ...]
    relations: tuple[RelationSchema, ...]

    @classmethod
    def from_store(cls, store: Store) -> "GraphSchema":
        """The schema of `store`'s open generation."""
        number = {info.relation: index for index, info in enumerate(store.relations)}
        return cls(
            node_types=tuple(
                NodeTypeSchema(
                    name=kind.name,
                    feature_dim=kind.feature_dim,
                    feature_dtype=kind.feature_dtype,
                    feature_scale=kind.feature_scale,
                    num_nodes=kind.num_nodes,
                    numbering=tuple(segment.ids.sums_xxh64 for segment in kind.segments),
                )
                for kind in store.node_types
            ),
            relations=tuple(
                RelationSchema(
                    name=str(info.relation),
                    source_type=store.type_index(info.relation.source),
                    target_type=store.type_index(info.relation.target),
                    reverse_of=None if info.reverse_of is None else number[info.reverse_of],
                )
                for info in store.relations
            ),
        )

    @property
    def is_homogeneous(self) -> bool:
        """One node type and one relation: convolutions then add each node to its own neighbours."""
        return len(self.node_types) == 1 and len(self.relations) == 1

    def relations_into(self, node_type: int) -> tuple[int, ...]:
        """Numbers of the relations whose targets have type `node_type`."""
        return tuple(number for number, relation in enumerate(self.relations) if relation.target_type == node_type)
