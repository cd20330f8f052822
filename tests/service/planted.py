"""Stores whose communities are planted: most edges run inside them, and the label column names them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.ingest import IngestSettings, ingest
from storage.store import Store


def planted_store(
    folder: Path, *, sizes: list[int], inside: float = 6.0, across: float = 1.0, num_alone: int = 0
) -> Store:
    """A store of one type and one relation both ways, whose label is the number of the planted community.

    Args:
        sizes: nodes of each community; ids are shuffled.
        inside: edges a node inside its community, on average; each is stored both ways.
        across: edges a node to anywhere.
        num_alone: nodes without edges, of label -1.
    """
    rng = np.random.default_rng(5)
    num_nodes = sum(sizes)
    label = np.repeat(np.arange(len(sizes)), sizes)
    first = np.cumsum([0, *sizes])
    source = rng.integers(0, num_nodes, int(inside * num_nodes))
    target = rng.integers(first[label[source]], first[label[source] + 1])
    more = rng.integers(0, num_nodes, (2, int(across * num_nodes)))
    source, target = np.concatenate([source, more[0]]), np.concatenate([target, more[1]])
    kept = source != target
    ids = rng.permutation(num_nodes + num_alone)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"id": ids, "label": np.concatenate([label, np.full(num_alone, -1)])}), folder / "nodes.parquet"
    )
    pq.write_table(pa.table({"src": ids[source[kept]], "dst": ids[target[kept]]}), folder / "edges.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / "edges.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))
