"""Embeddings on disk: Parquet parts per node type under the user's own ids, and a manifest written last.

    <out>/<type>/part-00000.parquet   id, embedding (fixed_size_list<float32>[dim]); rows in the store's order
    <out>/manifest.json               which model and store they come from, and every part with its size

Parts grow in `<out>/_unfinished/` (a name that Parquet readers skip) and move to their places when all are
complete: until then an earlier result in the same folder stays whole. Without a manifest there is no result.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.errors import BadInput, DamagedStore
from storage.place import Place

MANIFEST = "manifest.json"
STAGING = "_unfinished"
GROUP_BYTES = 16 << 20
"""embeddings held back for one row group"""
PART_BYTES = 512 << 20
"""embeddings in one part"""


class EmbeddingPart(BaseModel):
    """One Parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="path relative to the manifest")
    num_rows: int = Field(ge=0, description="nodes in this file")
    num_bytes: int = Field(ge=0, description="size of this file")


class EmbeddedType(BaseModel):
    """The embeddings of one node type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="node type")
    num_nodes: int = Field(ge=0, description="rows over all parts")
    id_type: Literal["int64", "string"] = Field(description="type of the user's ids")
    parts: tuple[EmbeddingPart, ...] = Field(description="in the store's order of nodes")


class EmbeddingManifest(BaseModel):
    """`manifest.json`: what these embeddings are; a folder without it holds no result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = Field(1, description="format of this file")
    run: str = Field(description="name of the run that trained the encoder")
    step: int = Field(ge=0, description="training steps done by the encoder")
    encoder: dict[str, Any] = Field(description="the encoder's section of the run file")
    store: str = Field(description="URL of the embedded store")
    generation: int = Field(ge=0, description="generation of that store")
    generation_xxh64: str = Field(description="of that generation's file, by which a replaced store is noticed")
    dim: int = Field(ge=1, description="columns of an embedding")
    node_types: tuple[EmbeddedType, ...] = Field(description="in the store's order")


class PartWriter:
    """Writes one node type's embeddings in row order, rolling to a new part at `part_bytes`.

    Args:
        place: the staging folder.
        node_type: its name, and the folder of its parts.
        ids: the user's ids in row order, in batches of any size.
        dim: columns of an embedding.
        part_bytes, group_bytes: embedding bytes in a part and in a row group; files depend on these alone and
            not on how rows arrive.
    """

    def __init__(
        self,
        place: Place,
        *,
        node_type: str,
        ids: Iterator[pa.Array],
        dim: int,
        part_bytes: int = PART_BYTES,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self.parts: list[EmbeddingPart] = []
        self._place = place
        self._node_type = node_type
        self._ids = ids
        self._ids_left: pa.Array | None = None
        self._dim = dim
        self._rows_per_group = max(1, group_bytes // (4 * dim))
        self._groups_per_part = max(1, part_bytes // (4 * dim) // self._rows_per_group)
        self._group = np.empty((self._rows_per_group, dim), dtype=np.float32)
        self._held = 0
        self._open = ExitStack()
        self._parquet: pq.ParquetWriter | None = None
        self._groups = 0
        self._rows = 0

    def __enter__(self) -> Self:
        """Nothing is opened before the first row group."""
        return self

    def write(self, rows: NDArray[np.float32]) -> None:
        """Append the embeddings [n, dim] of the next n nodes."""
        done = 0
        while done < rows.shape[0]:
            taken = min(rows.shape[0] - done, self._rows_per_group - self._held)
            self._group[self._held : self._held + taken] = rows[done : done + taken]
            self._held += taken
            done += taken
            if self._held == self._rows_per_group:
                self._flush_group()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the last part; after an exception the part being written is thrown away."""
        if kind is None:
            if self._held:
                self._flush_group()
            self._close_part()
        else:
            self._open.__exit__(kind, *_)  # type: ignore[arg-type]  # the exception as it was handed in

    def _flush_group(self) -> None:
        values = pa.array(self._group[: self._held].reshape(-1))
        embedding = pa.FixedSizeListArray.from_arrays(values, self._dim)
        table = pa.table({"id": self._next_ids(self._held), "embedding": embedding})
        if self._parquet is None:
            file = self._open.enter_context(self._place.open_write(self._part_name()))
            self._parquet = pq.ParquetWriter(
                file,
                table.schema,
                compression={"id": "zstd", "embedding.list.element": "none"},
                use_dictionary=False,
                write_page_checksum=True,
            )
        self._parquet.write_table(table, row_group_size=self._rows_per_group)
        self._rows += self._held
        self._groups += 1
        self._held = 0
        if self._groups == self._groups_per_part:
            self._close_part()

    def _close_part(self) -> None:
        if self._parquet is None:
            return
        self._parquet.close()
        self._open.close()
        name = self._part_name()
        self.parts.append(EmbeddingPart(name=name, num_rows=self._rows, num_bytes=self._place.size(name)))
        self._parquet, self._groups, self._rows = None, 0, 0

    def _part_name(self) -> str:
        return f"{self._node_type}/part-{len(self.parts):05d}.parquet"

    def _next_ids(self, count: int) -> pa.ChunkedArray:
        """The ids of the next `count` rows."""
        pieces = []
        while count:
            batch = next(self._ids) if self._ids_left is None else self._ids_left
            piece = batch.slice(0, count)
            self._ids_left = batch.slice(count) if len(batch) > count else None
            pieces.append(piece)
            count -= len(piece)
        return pa.chunked_array(pieces)


def commit(place: Place, manifest: EmbeddingManifest) -> None:
    """Move the staged parts to their places and write the manifest, which makes them a result.

    The earlier manifest goes first: a move cut short leaves no manifest, and running again puts it right.
    """
    place.remove(MANIFEST)
    kept = {part.name for kind in manifest.node_types for part in kind.parts}
    for kind in manifest.node_types:
        for part in kind.parts:
            _move(place, f"{STAGING}/{part.name}", part.name)
        for name in place.names(kind.name):
            if name.startswith("part-") and f"{kind.name}/{name}" not in kept:
                place.remove(f"{kind.name}/{name}")
    place.write_bytes(MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1).encode())
    place.remove(STAGING)


def _move(place: Place, old: str, new: str) -> None:
    source, target = place.local(old), place.local(new)
    if source is None or target is None:
        place.fs.makedirs(place.path(new).rpartition("/")[0], exist_ok=True)
        place.fs.mv(place.path(old), place.path(new))
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(source, target)


def read_manifest(place: Place) -> EmbeddingManifest:
    """The manifest of the embeddings in `place`; BadInput when there is none or a part is missing or short."""
    where = place.full(MANIFEST)
    try:
        manifest = EmbeddingManifest.model_validate_json(place.read_bytes(MANIFEST))
    except FileNotFoundError:
        raise BadInput(
            place.url,
            f"no {MANIFEST}",
            rule="finished embeddings have a manifest",
            remedy="run `hopstream embed` to the end, or name the folder given to it as --out",
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(
            where,
            f"{key}: {first['msg']}",
            rule="an embedding manifest of format 1",
            remedy="name the folder that `hopstream embed` wrote",
        ) from None
    for kind in manifest.node_types:
        for part in kind.parts:
            if not place.exists(part.name):
                raise DamagedStore(
                    place.full(part.name),
                    "missing file",
                    rule="every part in the manifest is there",
                    remedy="embed again",
                )
            if place.size(part.name) != part.num_bytes:
                raise DamagedStore(
                    place.full(part.name),
                    f"{place.size(part.name)} bytes",
                    rule=f"the manifest says {part.num_bytes}",
                    remedy="embed again",
                )
    return manifest


def read_parts(
    place: Place, parts: Sequence[EmbeddingPart], *, rows_per_batch: int = 65536
) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
    """Stream (ids [n], embeddings [n, dim]) of one node type, page checksums verified.

    Raises DamagedStore that names the part.
    """
    for part in parts:
        try:
            with place.open_read(part.name) as file:
                parquet = pq.ParquetFile(file, page_checksum_verification=True)
                for batch in parquet.iter_batches(batch_size=rows_per_batch, columns=["id", "embedding"]):
                    values = batch.column("embedding")
                    yield (
                        batch.column("id"),
                        values.flatten().to_numpy().reshape(len(values), values.type.list_size),
                    )
        except (OSError, pa.ArrowException, KeyError) as error:
            reason = " ".join(str(error).split())
            raise DamagedStore(
                place.full(part.name),
                f"unreadable ({reason})",
                rule="parts are whole Parquet files with columns id and embedding",
                remedy="embed again",
            ) from None
