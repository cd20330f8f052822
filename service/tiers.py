"""Where feature rows are kept between the store and the encoder: the run file's section, and the disk tier it names.

Host memory is `sampling.host_tier`; the tier below it is the block cache on the local disk (`storage.block_cache`),
which serves stores that are elsewhere and features that stay in Parquet.
"""

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from storage.block_cache import BlockCache
from storage.local_cache import open_block_cache


class TiersSection(BaseModel):
    """Where features are kept on their way to the encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host_cache_bytes: ByteSize = Field(
        ByteSize(1 << 30), description="Host memory a worker for the hottest rows, e.g. 4GiB."
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


def block_cache_of(tiers: TiersSection) -> BlockCache | None:
    """The block cache that a run file asks for; None when it asks for none. Nothing is written before it is used."""
    limit = tiers.disk_cache_bytes
    return open_block_cache(folder=tiers.disk_cache_folder, limit_bytes=None if limit is None else int(limit))
