"""Which nodes of a store are seeds: all of them, or those of some types."""

import numpy as np
from numpy.typing import NDArray

from service.run_file import DataSection
from storage.store import Store


def seed_nodes(store: Store, data: DataSection) -> NDArray[np.int64] | None:
    """Global ids (int64) of the seed nodes, or None when every node is one; BadInput for an unknown type."""
    if not data.seed_types:
        return None
    offsets = store.type_offsets
    indices = sorted({store.type_index(name) for name in data.seed_types})
    return np.concatenate([np.arange(offsets[index], offsets[index + 1]) for index in indices])
