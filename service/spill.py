"""Hidden states of one layer on disk, between the pass that computes them and the pass that reads them."""

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from service.chunks import Chunk
from storage.arrays import ArrayWriter
from storage.features import FeatureFile, StoredFeatures
from storage.graph import Topology
from storage.place import Place


class Spill:
    """One layer's hidden states on disk: a float32 array file for each node type that has nodes."""

    def __init__(self, place: Place, topology: Topology, *, layer: int) -> None:
        self._place = place.child(layer_folder(layer))
        self._sizes = np.diff(topology.type_offsets)
        self._writers: dict[int, ArrayWriter] = {}
        self._dim = 0
        self._open = ExitStack()

    def __enter__(self) -> "Spill":
        """Files are opened as their first rows arrive."""
        return self

    def write(self, chunk: Chunk, rows: NDArray[np.float32]) -> None:
        """Append a chunk's rows [S, D] to the file of its type."""
        if chunk.node_type not in self._writers:
            self._dim = rows.shape[1]
            self._writers[chunk.node_type] = self._open.enter_context(
                ArrayWriter(
                    self._place,
                    f"{chunk.node_type}.npy",
                    dtype=np.dtype(np.float32),
                    shape=(int(self._sizes[chunk.node_type]), self._dim),
                )
            )
        self._writers[chunk.node_type].write(rows)

    def __exit__(self, *exception: object) -> None:
        """Finish the files; after an exception they are thrown away."""
        self._open.__exit__(*exception)  # type: ignore[arg-type]  # the exception as it was handed in

    def open(self, opened: ExitStack) -> list[StoredFeatures | None]:
        """A reader a type, closed by `opened`; None for types without nodes."""
        tables: list[StoredFeatures | None] = [None] * self._sizes.shape[0]
        for node_type, writer in self._writers.items():
            table = FeatureFile(
                self._place,
                writer.info,
                num_rows=int(self._sizes[node_type]),
                dim=self._dim,
                dtype=np.dtype(np.float32),
            )
            opened.callback(table.close)
            tables[node_type] = table
        return tables


def layer_folder(number: int) -> str:
    """Folder of the hidden states after layer `number`."""
    return f"layer-{number}"
