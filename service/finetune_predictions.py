"""Predictions of a classifier for every node of a type, with full neighbourhoods, as Parquet under the user's ids.

    store -> encoder, layer by layer           service.layerwise, as embedding does
    states -> head -> probabilities            a chunk of nodes at a time
    probabilities -> predictions.parquet       id, prediction (a label), probabilities (one per class)

Shapes: N nodes of the type that are not deleted, C classes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from service.chunks import Chunk
from service.embedding import EncoderStack
from service.finetune_model import Classifier
from service.finetune_nodes import LabelledNodes
from service.layerwise import run_layers
from service.run_file import RunFile
from service.tiers import layerwise_cache_bytes, open_features
from storage.errors import DamagedStore
from storage.place import Place
from storage.progress import Progress
from storage.store import Store

PREDICTIONS = "predictions.parquet"
WORK = "work"
GROUP_ROWS = 65536
GROUP_BYTES = 16 << 20
"""of probabilities in a row group, at most"""
NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Scores:
    """How predictions compare with the labels of some nodes, in percent."""

    accuracy: float
    macro_f1: float
    """mean over the classes that occur in labels or predictions; 0 for one that is never right"""


class PredictionWriter:
    """Writes predictions in row groups, each as long as a batch of ids; complete when all ids have come.

    Args:
        parquet: of `prediction_schema`.
        ids: the user's ids in row order, at most `group_rows` at a time.
        classes: [C] labels.
    """

    def __init__(self, parquet: pq.ParquetWriter, *, ids: Iterator[pa.Array], classes: NDArray[np.int64]) -> None:
        self._parquet = parquet
        self._ids = ids
        self._classes = classes
        self._waiting: pa.Array | None = None
        self._group = np.empty((group_rows(classes.shape[0]), classes.shape[0]), dtype=np.float32)
        self._held = 0

    def write(self, probabilities_NC: NDArray[np.float32]) -> None:
        """Append the probabilities [n, C] of the next n nodes."""
        left = probabilities_NC
        while left.shape[0]:
            while self._waiting is None or not len(self._waiting):  # batches of deleted nodes are empty
                self._waiting = next(self._ids)
            taken = min(left.shape[0], len(self._waiting) - self._held)
            self._group[self._held : self._held + taken] = left[:taken]
            self._held += taken
            left = left[taken:]
            if self._held == len(self._waiting):
                self._write_group(self._waiting)

    def _write_group(self, ids: pa.Array) -> None:
        rows_NC = self._group[: self._held]
        columns = {
            "id": ids,
            "prediction": self._classes[rows_NC.argmax(1)],
            "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(rows_NC.reshape(-1)), rows_NC.shape[1]),
        }
        self._parquet.write_table(pa.table(columns, schema=self._parquet.schema), row_group_size=GROUP_ROWS)
        self._waiting, self._held = None, 0


def group_rows(num_classes: int) -> int:
    """Rows of a row group."""
    return max(1, min(GROUP_ROWS, GROUP_BYTES // (4 * num_classes)))


def prediction_schema(id_type: str, *, num_classes: int) -> pa.Schema:
    """Of predictions of nodes with ids int64 or string."""
    return pa.schema(
        {
            "id": pa.int64() if id_type == "int64" else pa.string(),
            "prediction": pa.int64(),
            "probabilities": pa.list_(pa.float32(), num_classes),
        }
    )


@contextmanager
def prediction_file(
    place: Place, *, store: Store, node_type: str, classes: NDArray[np.int64]
) -> Iterator[PredictionWriter]:
    """Writes `predictions.parquet` of the nodes of a type in the store's order; it appears when the block ends well."""
    num_classes = classes.shape[0]
    schema = prediction_schema(store.node_type(node_type).id_type, num_classes=num_classes)
    ids = iter(store.id_batches(node_type, rows_per_batch=group_rows(num_classes)))
    with (
        place.open_write(PREDICTIONS) as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as parquet,
    ):
        yield PredictionWriter(parquet, ids=ids, classes=classes)


def write_predictions(
    run: RunFile,
    classifier: Classifier,
    *,
    store: Store,
    nodes: LabelledNodes,
    place: Place,
    device: torch.device,
    progress: Progress,
) -> NDArray[np.int64]:
    """Write the predictions for every node of the type that is not deleted; returns them by dense id, -1 elsewhere.

    Args:
        classifier: on `device`; put into evaluation mode.
        place: where `predictions.parquet` goes, and hidden states meanwhile. One process uses it at a time.
    """
    classifier.eval()
    kind = store.node_types[nodes.kind.index]
    predicted = np.full(kind.num_nodes, -1, dtype=np.int64)
    live = [store.live_ids(kind.name) if index == nodes.kind.index else NONE for index in range(len(store.node_types))]
    with ExitStack() as opened:
        writer = opened.enter_context(prediction_file(place, store=store, node_type=kind.name, classes=nodes.classes))

        def write(chunk: Chunk, rows_ND: NDArray[np.float32]) -> None:
            with torch.no_grad():
                logits_NC = classifier.head(torch.from_numpy(rows_ND).to(device))
                probabilities_NC = logits_NC.softmax(1).cpu().numpy()
            predicted[chunk.ids] = nodes.classes[probabilities_NC.argmax(1)]
            writer.write(probabilities_NC)

        run_layers(
            EncoderStack(classifier.encoder, device=device),
            topology=store.topology(),
            features=open_features(store, opened),
            values=classifier.values,
            work=place.child(WORK),
            cache_bytes=layerwise_cache_bytes(run.tiers),
            limits=run.embedding.limits,
            device=device,
            progress=progress,
            name="predict",
            sink=write,
            rows=live,
        )
    return predicted


def scores_of(predicted: NDArray[np.int64], *, nodes: LabelledNodes, ids: NDArray[np.int64]) -> Scores:
    """Of the predictions by dense id, for the nodes `ids`."""
    labels, found = nodes.kind.labels[ids], predicted[ids]
    return Scores(
        accuracy=100.0 * float(np.mean(labels == found)),
        macro_f1=100.0 * float(f1_score(labels, found, average="macro", zero_division=0.0)),
    )


def read_probabilities(place: Place, *, rows_per_batch: int = GROUP_ROWS) -> Iterator[NDArray[np.float32]]:
    """Stream the probabilities [n, C] of `predictions.parquet` in row order; DamagedStore when it cannot be read."""
    try:
        with place.open_read(PREDICTIONS) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in parquet.iter_batches(batch_size=rows_per_batch, columns=["probabilities"]):
                values = batch.column("probabilities")
                yield values.flatten().to_numpy().reshape(len(values), values.type.list_size)
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())
        raise DamagedStore(
            place.full(PREDICTIONS),
            f"unreadable ({reason})",
            rule="predictions are a whole Parquet file",
            remedy="remove their folder and run `hopstream finetune` again",
        ) from None
