"""The rows that an evaluation scores: the trained embeddings and three baselines, for the nodes that are asked for.

One kind of rows is held at a time, and only the rows that some task looks at. Dense ids count inside a node type.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.baselines import NONE, Machinery, random_rows, raw_rows, sgc_rows
from service.embedding import check_schema
from service.embedding_files import MANIFEST, EmbeddingManifest, read_parts
from service.encoders.base import Encoder
from service.evaluation_report import RowsName
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

Wanted = list[NDArray[np.int64]]
"""ascending dense ids per node type"""


@dataclass(frozen=True)
class Rows:
    """One kind of rows for one evaluation."""

    name: RowsName
    ids: Sequence[NDArray[np.int64]]
    """[T] ascending dense ids of each node type"""
    x: Sequence[NDArray[np.float32] | None]
    """[T] rows [len(ids[t]), D] of each type; None where this kind of rows does not exist"""
    seconds: float
    """spent on each type's rows"""

    def of(self, node_type: int, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows [len(ids), D] of nodes among those asked for, in any order; the type has them."""
        x_ND = self.x[node_type]
        assert x_ND is not None
        if ids.shape[0] == self.ids[node_type].shape[0] and np.array_equal(ids, self.ids[node_type]):
            return x_ND
        return np.asarray(x_ND[np.searchsorted(self.ids[node_type], ids)])


def missing_note(store: Store, node_type: int) -> str:
    """Why a node type has no raw and no SGC rows."""
    return f"node type {store.node_types[node_type].name} has no features"


def all_rows(
    store: Store,
    *,
    wanted: Wanted,
    manifest: EmbeddingManifest,
    place: Place,
    machinery: Machinery,
    random_encoder: Callable[[], Encoder],
    progress: Progress,
) -> Iterator[Rows]:
    """Trained rows, raw features, SGC and the random encoder, one after another.

    Args:
        wanted: ids of each node type; a type of which none is wanted is not read.
        manifest, place: of the trained embeddings.
        random_encoder: makes an encoder of the trained one's configuration with fresh weights.
    """
    parts = [index for index, ids in enumerate(wanted) if ids.size]
    featured = [index for index in parts if machinery.features[index] is not None]

    def rows(name: RowsName, types: Sequence[int], found: Sequence[NDArray[np.float32]], began: float) -> Rows:
        held: list[NDArray[np.float32] | None] = [None] * len(wanted)
        for index in types:
            held[index] = found[index]
        return Rows(name=name, ids=wanted, x=held, seconds=(time.monotonic() - began) / max(1, len(types)))

    began = time.monotonic()
    trained = [np.empty((0, 0), dtype=np.float32) for _ in wanted]
    for index in parts:
        name = store.node_types[index].name
        trained[index] = embedded_rows(
            store, name, manifest=manifest, place=place, rows=wanted[index], progress=progress
        )
    yield rows("trained", parts, trained, began)
    del trained
    began = time.monotonic()
    raw = [np.empty((0, 0), dtype=np.float32) for _ in wanted]
    for index in featured:
        table, kind = machinery.features[index], store.node_types[index]
        assert table is not None
        raw[index] = raw_rows(table, scale=kind.feature_scale, rows=wanted[index], name=kind.name, progress=progress)
    yield rows("raw", featured, raw, began)
    del raw
    began = time.monotonic()
    some = [ids if index in featured else NONE for index, ids in enumerate(wanted)]
    yield rows("sgc", featured, sgc_rows(machinery, rows=some), began)
    began = time.monotonic()
    encoder = random_encoder()
    check_schema(encoder.schema, store)
    yield rows("random_init", parts, random_rows(machinery, encoder, rows=wanted), began)


def check_manifest(manifest: EmbeddingManifest, store: Store, place: Place) -> None:
    """Raise BadInput when node types, or their numbers of nodes, are not those of the store."""
    embedded = {kind.name: kind.num_nodes for kind in manifest.node_types}
    stored = {kind.name: kind.num_live for kind in store.node_types}
    for name in stored | embedded:
        if embedded.get(name) != stored.get(name):
            raise BadInput(
                place.full(MANIFEST),
                f"node type {name}: {embedded.get(name, 'no')} embeddings for {stored.get(name, 'no')} nodes",
                rule=f"embeddings cover the nodes of the store, {store.place.url}",
                remedy="embed this store again, or name the embeddings that belong to it",
            )


def embedded_rows(
    store: Store,
    node_type: str,
    *,
    manifest: EmbeddingManifest,
    place: Place,
    rows: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.float32]:
    """Embeddings [len(rows), D] of the ascending dense ids `rows`, joined by the user's ids.

    Raises BadInput for an id that the store does not know, that occurs twice, or that is missing; DamagedStore
    for a part that cannot be read.
    """
    kind = next(item for item in manifest.node_types if item.name == node_type)
    progress.stage(f"read {node_type}", total=kind.num_nodes, unit="nodes")
    seen = np.zeros(store.num_nodes(node_type), dtype=bool)
    seen[store.deleted(node_type)] = True
    out = np.empty((rows.shape[0], manifest.dim), dtype=np.float32)
    remedy = "embed this store again, or name the embeddings that belong to it"
    for ids, x_ND in read_parts(place, kind.parts):
        found = store.rows_of(node_type, ids)
        again = np.flatnonzero(seen[found])
        fresh = np.unique(found).shape[0]
        if again.size or fresh < found.shape[0]:
            first = int(again[0]) if again.size else repeated(found)
            raise BadInput(
                place.full(node_type),
                f"id {ids[first]} twice",
                rule="every node has one embedding",
                remedy=remedy,
            )
        seen[found] = True
        target = np.searchsorted(rows, found)
        wanted = np.flatnonzero((target < rows.shape[0]) & (rows[np.minimum(target, rows.shape[0] - 1)] == found))
        out[target[wanted]] = x_ND[wanted]
        progress.advance(found.shape[0])
    missing = np.flatnonzero(~seen)
    if missing.size:
        identifier = store.node_column(node_type, "id")[int(missing[0])]
        raise BadInput(
            place.full(node_type),
            f"no embedding of id {identifier} ({missing.size} such nodes)",
            rule="every node has one embedding",
            remedy=remedy,
        )
    return out


def repeated(values: NDArray[np.int64]) -> int:
    """Place of the first value that occurs before it already; there is one."""
    _, first = np.unique(values, return_index=True)
    return int(np.setdiff1d(np.arange(values.shape[0]), first)[0])
