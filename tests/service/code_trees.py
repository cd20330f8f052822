"""Small trees of Python files, their code graphs, and the features found in them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from service.codegraph.build import CodeGraph, write_code_graph
from storage.progress import NoProgress


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        path.write_text("\n".join(line.removeprefix("        ") for line in lines), encoding="utf-8")
    return root


def write_graph(root: Path, out: Path, *, num_processes: int = 1, min_class_nodes: int = 2) -> CodeGraph:
    return write_code_graph(
        str(out),
        roots=[root],
        min_class_nodes=min_class_nodes,
        num_processes=num_processes,
        progress=NoProgress(),
    )


def features_by_id(graph: CodeGraph, kind: str) -> dict[str, bytes]:
    table = pq.read_table(graph.nodes[kind])
    rows = np.array(table["features"].to_pylist(), np.float16)
    return {name: row.tobytes() for name, row in zip(table["id"].to_pylist(), rows, strict=True)}
