"""The benchmark graph as a user of DGL has it on disk: a feature array and a CSC by target, in the user's ids."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.jit import kernel

_BATCH_ROWS = 1 << 20


def write_feature_array(nodes: Path, out: Path, *, num_nodes: int, dim: int) -> None:
    """`out`: float16 [num_nodes, dim], row i = node i of the table, whose ids are in order."""
    if out.exists():
        return
    partial = out.with_suffix(".partial")
    with open(partial, "wb") as file, pq.ParquetFile(nodes) as table:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f2", "fortran_order": False, "shape": (num_nodes, dim)}
        )  # fmt: skip
        for batch in table.iter_batches(batch_size=_BATCH_ROWS // 4, columns=["features"]):
            file.write(batch.column(0).flatten().to_numpy(zero_copy_only=True).data)
    partial.rename(out)


def write_csc(edges: Path, folder: Path, *, num_nodes: int, num_edges: int) -> None:
    """In-neighbours in table order: `indptr.npy` [num_nodes + 1], int32 where it fits, `indices.npy` int32 [num_edges].

    Two passes over the table. Memory: 4 bytes an edge and 16 a node.
    """
    if (folder / "indices.npy").exists():
        return
    indptr = np.zeros(num_nodes + 1, dtype=np.int64)
    indices = np.empty(num_edges, dtype=np.int32)
    with pq.ParquetFile(edges) as table:
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=["dst"]):
            _count(batch.column(0).to_numpy(), indptr)
        np.cumsum(indptr, out=indptr)
        fits = num_edges < 2**31
        _save(folder / "indptr.npy", indptr.astype(np.int32) if fits else indptr)
        filled = indptr[:-1].copy()
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=["src", "dst"]):
            _place(batch.column(0).to_numpy(), batch.column(1).to_numpy(), filled, indices)
    assert np.array_equal(filled, indptr[1:])
    _save(folder / "indices.npy", indices)


def _save(path: Path, array: NDArray[np.int32] | NDArray[np.int64]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.save(file, array)
    partial.rename(path)


@kernel
def _count(targets: NDArray[np.int64], indptr: NDArray[np.int64]) -> None:
    """Add the edges of every target to the place behind it."""
    for edge in range(targets.shape[0]):
        indptr[targets[edge] + 1] += 1


@kernel
def _place(
    sources: NDArray[np.int64], targets: NDArray[np.int64], filled: NDArray[np.int64], indices: NDArray[np.int32]
) -> None:
    """Append every edge's source to its target's list; `filled` is where the lists end so far."""
    for edge in range(sources.shape[0]):
        at = filled[targets[edge]]
        indices[at] = sources[edge]
        filled[targets[edge]] = at + 1
