"""Where tests find data: the shared real graphs, and small tables that they write themselves."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from storage.ingest import IngestSettings, ingest

ROOT = Path(__file__).parent.parent


def real_graph(name: str) -> Path:
    """Folder of a real graph; skips the test where it is absent."""
    folder = Path(os.environ.get("HOPSTREAM_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"real graph {name} is not at {folder}; set HOPSTREAM_DATA to the folder that holds it")
    return folder


def write_tables(folder: Path, *, num_nodes: int = 300, num_edges: int = 2400, num_classes: int = 3) -> None:
    """nodes.parquet and edges.parquet of a graph whose communities show in features and edges."""
    rng = np.random.default_rng(7)
    label = rng.integers(0, num_classes, num_nodes)
    centres = rng.normal(size=(num_classes, 16))
    features = (centres[label] + rng.normal(size=(num_nodes, 16))).astype(np.float32)
    source = rng.integers(0, num_nodes, num_edges)
    target = rng.integers(0, num_nodes, num_edges)
    kept = (label[source] == label[target]) | (rng.random(num_edges) < 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(
            {
                "id": np.arange(num_nodes) * 10,
                "features": pa.FixedSizeListArray.from_arrays(features.ravel(), 16),
                "label": label,
            }
        ),
        folder / "nodes.parquet",
    )
    pq.write_table(pa.table({"src": source[kept] * 10, "dst": target[kept] * 10}), folder / "edges.parquet")


def small_store(folder: Path) -> Path:
    """A store of the tables of `write_tables`."""
    write_tables(folder)
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / "edges.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(folder / "store"))
    return folder / "store"


def small_run(folder: Path, *, name: str = "small", **sections: dict[str, Any]) -> Path:
    """A run file on the store in `folder` that trains in a second: 5 steps an epoch, 4 epochs."""
    document: dict[str, Any] = {
        "run": {"name": name, "storage": str(folder / "runs"), "seed": 3},
        "data": {"store": str(folder / "store")},
        "sampling": {"fanouts": [4, 4, 4], "seeds_per_step": 64},
        "encoder": {
            "name": "gat", "num_layers": 2, "hidden_dim": 16, "num_heads": 2,
            "feature_dropout": 0.2, "attention_dropout": 0.1, "norm": "batch",
        },
        "objective": {"name": "graphmae", "mask_rate": 0.5, "replace_rate": 0.1},
        "training": {"epochs": 4, "log_every_steps": 1, "checkpoint_every_steps": 3, "num_compute_threads": 1},
    }  # fmt: skip
    for section, fields in sections.items():
        document.setdefault(section, {}).update(fields)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
