"""Where feature rows are kept between the store and the encoder: the run file's section, and the tiers it asks for.

Host memory is `sampling.host_tier`; the tier below it is the block cache on the local disk (`storage.block_cache`),
which serves stores that are elsewhere and features that stay in Parquet; below that is the store.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from sampling.host_tier import HostTier, share_cache_bytes
from sampling.planned_table import Packing
from storage.block_cache import BlockCache
from storage.default_cache import open_block_cache
from storage.features import Features, StoredFeatures
from storage.progress import NoProgress, Progress
from storage.store import Store


class TiersSection(BaseModel):
    """Where features are kept on their way to the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: ByteSize | None = Field(
        None,
        description="Memory of a training worker for everything: process, step, topology, features, batches; unset for "
        "four fifths of what its machine has left, shared by its workers.",
    )
    host_cache_bytes: ByteSize | None = Field(
        None,
        description="Of it for feature rows, e.g. 4GiB; unset for all that remains in training, 1GiB in embedding.",
    )
    device_cache_bytes: ByteSize | None = Field(
        None,
        description="Memory of the training device for the hottest feature rows; unset for half of what a GPU has "
        "left, none on the CPU. Workers of a machine that share a feeder keep none.",
    )
    topology: Literal["auto", "memory", "disk"] = Field(
        "auto",
        description="Where adjacency is while training; auto: in memory where that leaves features enough. On disk for "
        "sampling.mode=uniform only.",
    )
    topology_cache_bytes: ByteSize | None = Field(
        None, description="Memory for the hottest adjacency of a topology on disk; unset for a share of what is free."
    )
    packing: Packing = Field(
        "auto",
        description="Whether missed rows are laid down on local disk in batch order: always, never, or where that is "
        "predicted to be faster.",
    )
    scratch_folder: str | None = Field(
        None,
        description="Local folder for such packs and for batches that wait; unset for scratch beside the block cache.",
    )
    disk_cache_bytes: ByteSize | None = Field(
        None,
        description="Local disk for blocks of a remote store and for features decoded from Parquet; unset for 16GiB or "
        "a tenth of the free space, 0 for none (features in Parquet then take the default).",
    )
    disk_cache_folder: str | None = Field(
        None,
        description="Local folder of that cache, shared by all runs and workers of a machine; unset for "
        "$XDG_CACHE_HOME/hopstream/blocks, or ~/.cache/hopstream/blocks.",
    )


DEFAULT_HOST_BYTES = 1 << 30
"""for feature rows in layer-wise work"""


def layerwise_cache_bytes(tiers: TiersSection) -> int:
    """Host memory for feature rows while nodes are embedded."""
    return DEFAULT_HOST_BYTES if tiers.host_cache_bytes is None else int(tiers.host_cache_bytes)


def block_cache_of(tiers: TiersSection) -> BlockCache | None:
    """The block cache that a run file asks for; None when it asks for none. Nothing is written before it is used."""
    limit = tiers.disk_cache_bytes
    return open_block_cache(folder=tiers.disk_cache_folder, limit_bytes=None if limit is None else int(limit))


def open_features(store: Store, opened: ExitStack) -> list[StoredFeatures | None]:
    """A reader for each node type's features, closed by `opened`; None where a type has none."""
    tables = [store.features(kind.name) for kind in store.node_types]
    for table in tables:
        if table is not None:
            opened.enter_context(closing(table))
    return tables


def host_tiers(
    tables: Sequence[Features | None], *, cache_bytes: int, progress: Progress | None = None
) -> list[HostTier | None]:
    """A host tier over each node type's feature table, sharing one budget by table size; filled one by one."""
    progress = progress or NoProgress()
    progress.stage("fill host cache", total=len(tables), unit="tables")
    tiers = []
    for table, share in zip(tables, share_cache_bytes(tables, cache_bytes=cache_bytes), strict=True):
        tiers.append(None if table is None else HostTier(table, cache_bytes=share))
        progress.advance(1)
    return tiers
