"""Which nodes of a store are seeds: all of them, or those of some types; never deleted ones. Or edges are."""

import numpy as np
from numpy.typing import NDArray

from sampling.seeds import SeedOrder
from service.run_file import DataSection, RunFile
from service.seed_edges import has_seed_edges, seed_edge_order
from storage.store import Store


def seed_nodes(store: Store, data: DataSection) -> NDArray[np.int64] | None:
    """Global ids (int64) of the seed nodes, None when every row is one; BadInput for an unknown type."""
    if not data.seed_types and not store.has_deleted:
        return None
    names = data.seed_types or [kind.name for kind in store.node_types]
    indices = sorted({store.type_index(name) for name in names})
    return np.concatenate(
        [store.live_ids(store.node_types[index].name) + store.type_offsets[index] for index in indices]
    )


def seed_order(store: Store, run: RunFile) -> SeedOrder:
    """The order of a run's seeds, the same in every process of it: of nodes by global id, or of edges by place."""
    if has_seed_edges(run):
        return seed_edge_order(store, run)
    return SeedOrder(
        seed_nodes(store, run.data),
        num_nodes=int(store.type_offsets[-1]),
        seeds_per_step=run.sampling.seeds_per_step,
        seed=run.run.seed,
    )
