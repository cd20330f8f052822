"""Features of given nodes replaced: new feature files of the segments that hold them, all else shared.

    tables    -> dense id, row, features [n, dim], in runs by range of dense ids        any order of workers
    a range   -> the stored rows, overlaid with the new ones                            in dense order

The old files stay, for the generations that name them.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.append_settings import stored_settings
from storage.arrays import ArrayWriter
from storage.change import change_store
from storage.claim import Claim
from storage.errors import BadInput
from storage.feature_columns import FeatureColumns
from storage.fitting import features_like, refuse_in_place, refuse_other_ids
from storage.ingest_settings import IngestResources, IngestSettings
from storage.nodes import open_node_table
from storage.progress import Progress
from storage.schema import FileInfo, Generation, NodeSegment, NodeType
from storage.stages.context import Context, open_context
from storage.stages.executor import Executor
from storage.stages.id_map import IdMap
from storage.stages.live_ids import live_maps, only_known
from storage.stages.means import Means
from storage.stages.node_stages import map_ids
from storage.stages.overlay import Overlay, RangeTask, overlaid, ranges, read_overlay, touched_segments
from storage.store import Store
from storage.tables import Table, file_states


class RefreshSettings(BaseModel):
    """Tables with the columns `id` and the features, as they are ingested."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: dict[str, str] = Field(min_length=1, description="node type -> URL, glob or folder of its table")
    nan: Literal["refuse", "zero"] | None = Field(default=None, description="NaN and infinite features; the store's")


def refresh(
    settings: RefreshSettings,
    *,
    out: str,
    resources: IngestResources | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Replace the features of the nodes in the tables; arguments and result as `storage.append.append`.

    Raises:
        BadInput: an unknown or repeated id, features of another width or type, NaN as in ingest, values beyond the
            scale of quantised features.
        OSError: the disk is full or fails; the same command goes on from what is there.
    """
    prepare = partial(_prepare, settings, means=Means.given(resources, executor, progress))
    return change_store(out, prepare)


@dataclass(frozen=True)
class _Refresh:
    settings: IngestSettings
    tables: dict[str, Table]
    features: dict[str, FeatureColumns]
    means: Means

    @property
    def inputs(self) -> Any:
        files = [[name, file_states(table)] for name, table in self.tables.items()]
        return ["refresh", self.settings.model_dump(mode="json"), files]

    def write(self, store: Store, claim: Claim, fingerprint: str) -> Generation:
        kinds = {name: store.node_type(name) for name in self.tables}
        row_bytes = {name: kind.dim * np.dtype(kind.dtype).itemsize for name, kind in self.features.items()}
        context = open_context(
            self.settings,
            [only_known(store.place, kind) for kind in kinds.values()],
            {},
            claim=claim,
            fingerprint=fingerprint,
            means=self.means,
            more_bytes=sum((row_bytes[name] + 8) * table.num_rows for name, table in self.tables.items()),
        )
        maps = live_maps(context, tuple(kinds.values()), map_ids(context))
        total = sum(table.num_rows for table in self.tables.values())
        context.stages.begin("read features", total=total, unit="nodes")
        overlays = {name: self._overlay(context, kinds[name], maps[name]) for name in self.tables}
        number = store.generation.generation + 1
        segments = {name: touched_segments(kinds[name], overlays[name], self.tables[name]) for name in self.tables}
        total = sum(segment.num_nodes for touched in segments.values() for segment in touched)
        context.stages.begin("write features", total=total, unit="nodes")
        written = {
            name: {s.segment: _rewrite(context, kinds[name], s, overlays[name], number) for s in touched}
            for name, touched in segments.items()
        }
        context.stages.begin("commit", total=1, unit="store")
        context.stages.end()
        refreshed = {
            name: {"rows": table.num_rows, "nan_zeroed": overlays[name].num_zeroed}
            for name, table in self.tables.items()
        }
        return store.generation.model_copy(
            update={
                "generation": number,
                "node_types": tuple(_with_files(kind, written.get(kind.name, {})) for kind in store.node_types),
                "report": {"change": "refresh", "refreshed": refreshed, "seconds": context.stages.seconds},
            }
        )

    def _overlay(self, context: Context, kind: NodeType, ids: IdMap) -> Overlay:
        do = partial(
            read_overlay,
            table=self.tables[kind.name],
            columns=self.features[kind.name],
            kind=kind,
            ids=ids,
            nan=self.settings.nan,
            crew=context.crew,
        )
        return context.work.stage(f"overlay.{kind.name}", Overlay, do)


def _prepare(
    given: RefreshSettings,
    store: Store,
    *,
    means: Means,
) -> _Refresh:
    settings = stored_settings(store)
    if given.nan is not None:
        settings = settings.model_copy(update={"nan": given.nan})
    tables, features = dict[str, Table](), dict[str, FeatureColumns]()
    for name, url in given.features.items():
        kind = store.node_type(name)
        refuse_in_place(store, (kind,), what="refresh")
        tables[name] = open_node_table(url, feature_columns=settings.feature_columns)
        refuse_other_ids(kind, tables[name])
        found = features_like(kind, tables[name], settings)
        if found is None:
            raise BadInput(
                f"{store.place.url}, node type {name}",
                "no features",
                rule="features that the store has are replaced",
                remedy="ingest the tables with features as a new store",
            )
        features[name] = found
    return _Refresh(settings, tables, features, means)


def _rewrite(context: Context, kind: NodeType, segment: NodeSegment, overlay: Overlay, generation: int) -> FileInfo:
    name = f"nodes/{kind.name}/features.{segment.segment}.{generation}.npy"
    do = partial(_write_features, context=context, kind=kind, segment=segment, overlay=overlay, name=name)
    return context.work.stage(f"features.{kind.name}.{segment.segment}", FileInfo, do)


def _write_features(
    _: str, *, context: Context, kind: NodeType, segment: NodeSegment, overlay: Overlay, name: str
) -> FileInfo:
    assert kind.feature_dim is not None
    shape = (segment.num_nodes, kind.feature_dim)
    with ArrayWriter(context.place, name, dtype=np.dtype(kind.feature_dtype), shape=shape) as writer:
        tasks = [RangeTask(context.place, kind, segment, overlay, *cut) for cut in ranges(segment, overlay)]
        for rows in context.crew.executor.map(overlaid, tasks):
            writer.write(rows)
            context.stages.advance(len(rows))
    return writer.info


def _with_files(kind: NodeType, files: dict[int, FileInfo]) -> NodeType:
    segments = tuple(
        segment.model_copy(update={"features": files.get(segment.segment, segment.features)})
        for segment in kind.segments
    )
    return kind.model_copy(update={"segments": segments})
