"""What to append to a store: tables, and the settings that are the store's own."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import BadInput
from storage.ingest_settings import IngestSettings
from storage.schema import Dtype, Relation, RelationInfo
from storage.store import Store

_STORED = ("undirected", "features", "feature_dtype", "quantize", "feature_columns", "fanout", "order")


class AppendSettings(BaseModel):
    """Tables to append; what is None is as the store was ingested, and `dangling` and `nan` may differ from it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: dict[str, str] = Field(default_factory=dict, description="node type -> URL, glob or folder of new nodes")
    edges: dict[str, str] = Field(default_factory=dict, description="relation -> URL, glob or folder of new edges")
    undirected: bool | None = Field(default=None, description="the store's")
    dangling: Literal["refuse", "drop"] | None = Field(default=None, description="edges to unknown nodes")
    nan: Literal["refuse", "zero"] | None = Field(default=None, description="NaN and infinite features")
    features: Literal["copy", "in-place"] | None = Field(default=None, description="the store's")
    feature_dtype: Dtype | None = Field(default=None, description="the store's")
    quantize: bool | None = Field(default=None, description="the store's")
    feature_columns: tuple[str, ...] | None = Field(default=None, description="the store's")
    fanout: tuple[int, ...] | None = Field(default=None, description="the store's")
    order: Literal["hotness", "input"] | None = Field(default=None, description="the store's")

    def completed(self, store: Store) -> IngestSettings:
        """The settings of an ingest of these tables as the store's own were.

        Raises:
            BadInput: nothing is given, or a setting that is not the store's.
        """
        if not self.nodes and not self.edges:
            raise BadInput(
                "--append", "neither --nodes nor --edges", rule="an append has at least one table", remedy="name one"
            )
        stored = stored_settings(store)
        for name in _STORED:
            given, own = getattr(self, name), getattr(stored, name)
            if given is not None and given != own:
                raise BadInput(
                    f"--{name.replace('_', '-')} {_shown(given)}",
                    f"the store {store.place.url} has {_shown(own)}",
                    rule="what is appended is ingested as the store was",
                    remedy="leave the option out, or ingest all tables as a new store",
                )
        update: dict[str, Any] = {"nodes": self.nodes, "edges": self.edges}
        update |= {name: getattr(self, name) for name in ("dangling", "nan") if getattr(self, name) is not None}
        return stored.model_copy(update=update)


def stored_settings(store: Store) -> IngestSettings:
    """The settings that a store was ingested with; BadInput when they cannot be read."""
    try:
        return IngestSettings.model_validate(store.generation.settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"{store.place.url}, setting {'.'.join(map(str, first['loc']))}",
            str(first["msg"]),
            rule="a store that is changed holds the settings of its ingest",
            remedy="ingest the tables again with `hopstream ingest`",
        ) from None


def known_relation(store: Store, text: str) -> RelationInfo:
    """The stored relation `source:name:target`; BadInput for another one, or for one that holds reverses."""
    relation = Relation.parse(text)
    given = stored_settings(store).edges
    found = [info for info in store.relations if info.relation == relation and str(relation) in given]
    if not found:
        raise BadInput(
            f"relation {relation}",
            "not a relation of the store's tables",
            rule=f"the relations of {store.place.url} are {', '.join(given)}",
            remedy="correct the name, or ingest all tables as a new store",
        )
    return found[0]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
