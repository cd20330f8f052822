"""Small graphs with edges held out, as stores and tables, by node number."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.link_problem import LinkConfig, LinkProblem, link_problem
from storage.ingest import IngestSettings, ingest
from storage.store import Store

NUM_NODES = 40
Pair = tuple[int, int]


def table_of(pairs: list[Pair], path: Path) -> str:
    """Pairs of node numbers as a table of the user's ids, 100 apart."""
    pq.write_table(pa.table({"src": [100 * a for a, _ in pairs], "dst": [100 * b for _, b in pairs]}), path)
    return str(path)


def random_pairs(count: int, *, seed: int) -> list[Pair]:
    rng = np.random.default_rng(seed)
    drawn = {(int(a), int(b)) for a, b in rng.integers(0, NUM_NODES, (20 * count, 2)) if a < b}
    return sorted(drawn, key=lambda pair: hash((seed, *pair)))[:count]


def undirected(folder: Path) -> tuple[Store, list[Pair], list[Pair], list[Pair]]:
    """A store of training edges, and held-out test and validation edges, by node number."""
    pairs = random_pairs(150, seed=1)
    test, val, train = pairs[:25], pairs[25:40], pairs[40:]
    pq.write_table(pa.table({"id": 100 * np.arange(NUM_NODES)}), folder / "nodes.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": table_of(train, folder / "train.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    table_of([*test, *[(b, a) for a, b in test[:5]], (3, 3)], folder / "test.parquet")
    table_of(val, folder / "val.parquet")
    return Store.open(str(folder / "store")), train, val, test


def directed(folder: Path, train: list[Pair]) -> Store:
    """A store whose relation is not declared symmetric."""
    pq.write_table(pa.table({"id": 100 * np.arange(NUM_NODES)}), folder / "nodes.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": table_of(train, folder / "train.parquet")},
    )
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))


def problem_of(store: Store, given: LinkConfig, *, seed: int = 0) -> LinkProblem:
    return link_problem(store, store.topology(), config=given, seed=seed)


def numbers(store: Store) -> NDArray[np.int64]:
    """Node number of each dense id."""
    return np.asarray(store.node_column("node", "id").to_numpy() // 100)
