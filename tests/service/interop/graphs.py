"""A store of two node types and three relations, ingested from tables, and what it holds as plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.ingest import IngestSettings, ingest
from storage.store import Store

COUNTS = {"paper": 400, "author": 150}
CITES, WRITES, WRITTEN = "paper:cites:paper", "author:writes:paper", "paper:written_by:author"


def write_store(folder: Path, *, seed: int = 11, in_place: bool = False) -> Store:
    """Papers have features, labels and splits; authors times only; citations weights and times."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((COUNTS["paper"], 9)).astype(np.float16)
    papers = {
        "id": rng.permutation(COUNTS["paper"]) * 7 - 50,
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), 9),
        "label": rng.integers(-1, 4, COUNTS["paper"]),
        "split": rng.choice(["train", "val", "test", "none"], COUNTS["paper"]),
    }
    authors = {
        "id": [f"author {number}" for number in range(COUNTS["author"])],
        "timestamp": rng.integers(1900, 2000, COUNTS["author"]),
    }
    paper, author = papers["id"], np.array(authors["id"])
    cites = {
        "src": rng.choice(paper, 3000),
        "dst": rng.choice(paper, 3000),
        "weight": rng.random(3000).astype(np.float32),
        "timestamp": rng.integers(0, 50, 3000),
    }
    writes = {"src": rng.choice(author, 900), "dst": rng.choice(paper[:300], 900)}
    written = {"src": writes["dst"], "dst": writes["src"]}
    nodes, edges = {}, {}
    for name, table in {"paper": papers, "author": authors}.items():
        nodes[name] = str(folder / f"{name}.parquet")
        pq.write_table(pa.table(table), nodes[name])
    for name, ends in {CITES: cites, WRITES: writes, WRITTEN: written}.items():
        edges[name] = str(folder / f"{name.replace(':', '-')}.parquet")
        pq.write_table(pa.table(ends), edges[name])
    features_are = "in-place" if in_place else "copy"
    settings = IngestSettings.model_validate({"nodes": nodes, "edges": edges, "features": features_are})
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))


def all_features(store: Store, node_type: str) -> NDArray[Any]:
    """Every feature row, read as a plain array of the files."""
    parts = [
        np.load(store.place.path(segment.features.name))
        for segment in store.node_type(node_type).segments
        if segment.features is not None
    ]
    return np.concatenate(parts)


def assert_equal_graphs(first: Store, second: Store) -> None:
    """Both hold the same nodes under the same dense ids, columns and edges; the user's ids may differ."""
    assert {kind.name: kind.num_nodes for kind in first.node_types} == {
        kind.name: kind.num_nodes for kind in second.node_types
    }
    for kind in first.node_types:
        other = second.node_type(kind.name)
        assert (kind.feature_dim, kind.feature_dtype) == (other.feature_dim, other.feature_dtype)
        assert (kind.has_label, kind.has_split, kind.has_timestamp) == (
            other.has_label, other.has_split, other.has_timestamp,
        )  # fmt: skip
        if kind.feature_dim is not None:
            np.testing.assert_array_equal(all_features(first, kind.name), all_features(second, kind.name))
        if kind.has_label:
            assert (
                first.node_column(kind.name, "label").to_pylist() == second.node_column(kind.name, "label").to_pylist()
            )
        if kind.has_split:
            assert (
                first.node_column(kind.name, "split").to_pylist() == second.node_column(kind.name, "split").to_pylist()
            )
        if kind.has_timestamp:
            times = [store.node_column(kind.name, "timestamp").to_pylist() for store in (first, second)]
            assert times[0] == times[1]
    edges = [{csc.relation: csc for csc in store.topology().relations} for store in (first, second)]
    assert set(edges[0]) == set(edges[1])
    for relation, csc in edges[0].items():
        other_csc = edges[1][relation]
        for name in ("indptr", "indices", "out_degree", "weight", "timestamp"):
            values, other_values = getattr(csc, name), getattr(other_csc, name)
            assert (values is None) == (other_values is None)
            if values is not None:
                np.testing.assert_array_equal(values, other_values)
