"""How mini-batches are drawn: the run file's section, what it asks of a store, and the sampling mode it makes."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, model_validator

from sampling.fanouts import fanouts_by_relation
from sampling.modes import ModeName, SamplingMode, check_columns
from storage.errors import BadInput
from storage.node_columns import read_column
from storage.store import Store

NUMBER = TypeAdapter(int)
BY_RELATION = TypeAdapter(dict[str, int])


def read_fanout(value: Any) -> int | dict[str, int]:
    """One hop's fan-out as YAML has it."""
    try:
        return BY_RELATION.validate_python(value) if isinstance(value, dict) else NUMBER.validate_python(value)
    except ValidationError:
        raise ValueError(
            "a fan-out is an integer, or a mapping from relations source:name:target to integers"
        ) from None


Fanout = Annotated[int | dict[str, int], PlainValidator(read_fanout, json_schema_input_type=int | dict[str, int])]


class SamplingSection(BaseModel):
    """How mini-batches are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fanouts: tuple[Fanout, ...] = Field(
        (10, 10, 10),
        description="Neighbours per relation and hop, from the seeds outward; -1 for all. As many as "
        "encoder layers plus the objective's reach. A hop may be a mapping from relations source:name:target to "
        "numbers; those that it does not name, or gives 0, are left out of the hop.",
    )
    mode: ModeName = Field(
        "uniform",
        description="Which neighbours: uniform; weighted by edge weight; temporal-uniform or temporal-latest among the "
        "edges before the seed node's timestamp; labor, which shares neighbours among the nodes of a batch; or ppr, "
        "those of highest personalised PageRank.",
    )
    batch_dependency: int = Field(
        1,
        ge=1,
        description="With labor: steps over which its choice turns into a fresh one, so that consecutive batches share "
        "nodes; 1 for a fresh one in every step.",
    )
    seeds_per_step: int = Field(
        1024, ge=1, description="Seed nodes of the global batch, or seed edges, over all workers."
    )
    seed_relation: str | None = Field(
        None,
        description="Where seeds are edges (objective.targets: seeds): the relation source:name:target that they are "
        "of; unset where there is one only, apart from its reverse. An epoch has every stored edge of it once.",
    )
    num_negatives: int = Field(
        1, ge=1, description="Where seeds are edges: pairs that take the place of an edge, drawn from the whole graph."
    )
    negative_side: Literal["source", "target"] = Field(
        "target",
        description="Where seeds are edges: the end for which a negative has another node of the same type, all alike.",
    )
    num_threads: int = Field(1, ge=1, description="Sampling threads a worker.", json_schema_extra={"harmless": True})
    queue_batches: int = Field(
        4,
        ge=1,
        description="Batches in flight a worker, from memory or from a feeder that workers of a machine share; a "
        "stream of a worker's own keeps as many waiting as a sixteenth of its memory holds, 1 to 8.",
        json_schema_extra={"harmless": True},
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_dependency > 1 and self.mode != "labor":
            raise ValueError(f"batch_dependency={self.batch_dependency} is for mode labor, not for {self.mode}")
        return self


def check_sampling(section: SamplingSection, store: Store, *, seed_types: Sequence[str] | None) -> None:
    """BadInput for fan-outs that name unknown relations or mean nothing, and for times that the mode reads in vain.

    Args:
        seed_types: node types that seeds are taken from; empty for all, None where seeds are edges.
    """
    relations = [info.relation for info in store.relations]
    fanouts = fanouts_by_relation(section.fanouts, relations)
    mode = SamplingMode(section.mode)
    check_columns(mode, relations, timed=[info.has_timestamp for info in store.relations], fanouts=fanouts)
    for name in () if seed_types is None else seed_types or [kind.name for kind in store.node_types]:
        if mode.is_temporal and not store.node_type(name).has_timestamp:
            raise BadInput(
                f"sampling.mode={section.mode}",
                f"nodes of type {name} have no timestamps",
                rule="every seed of a temporal batch has a time",
                remedy="ingest these nodes with a column timestamp, or leave the type out of data.seed_types",
            )


def sampling_mode(section: SamplingSection, store: Store) -> SamplingMode:
    """The mode with all that it reads; the times of nodes take 8 bytes a node of the graph in temporal modes."""
    mode = SamplingMode(section.mode, batch_dependency=section.batch_dependency)
    if not mode.is_temporal:
        return mode
    return SamplingMode(section.mode, node_times=node_times(store))


def node_times(store: Store) -> NDArray[np.int64]:
    """Timestamps [num_nodes] by global id; 0 for nodes of types that have none."""
    times = np.zeros(int(store.type_offsets[-1]), dtype=np.int64)
    for index, kind in enumerate(store.node_types):
        if kind.has_timestamp:
            column = read_column(store.place, kind, column="timestamp")
            times[store.type_offsets[index] : store.type_offsets[index + 1]] = column.to_numpy()
    return times
