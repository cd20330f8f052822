"""Where the block cache of this machine is and how large it may be, when nobody says."""

import os
import shutil

from storage.block_cache import BlockCache
from storage.place import nearest_folder

DEFAULT_LIMIT_BYTES = 16 << 30
FREE_SHARE = 10
"""by default at most a tenth of what is free"""


def open_block_cache(*, folder: str | None = None, limit_bytes: int | None = None) -> BlockCache | None:
    """The block cache in `folder`, with `limit_bytes` of disk; 0 for none. Nothing is written before it is used.

    By default the folder is `$XDG_CACHE_HOME/hopstream/blocks` (`~/.cache/hopstream/blocks`) and the limit 16 GiB or
    a tenth of the free space, whichever is less.
    """
    if limit_bytes == 0:
        return None
    folder = os.path.abspath(os.path.expanduser(folder or default_folder()))
    return BlockCache(folder, limit_bytes=limit_bytes or _default_limit_bytes(folder))


def default_folder() -> str:
    """Where blocks are kept unless another folder is named."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hopstream", "blocks")


def _default_limit_bytes(folder: str) -> int:
    return min(DEFAULT_LIMIT_BYTES, shutil.disk_usage(nearest_folder(folder)).free // FREE_SHARE)
