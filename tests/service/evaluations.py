"""A small labelled store, embeddings written by hand, and an evaluation of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from service.embedding import EmbeddingConfig
from service.embedding_files import EmbeddedType, EmbeddingManifest, PartWriter, commit
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.registry import make_encoder
from service.evaluation import EvaluationConfig, evaluate
from service.evaluation_report import EvaluationReport
from service.probe import SplitSizes
from service.schema import GraphSchema
from storage.place import Place
from storage.progress import NoProgress, Progress
from storage.store import Store
from tests.service.batches import SmallGraph, homogeneous
from tests.service.stores import user_ids

NUM_CLASSES = 3
LIMITLESS = SplitSizes(train=10**6, val=10**6, test=10**6)


def labels_of(num_nodes: int) -> NDArray[np.int64]:
    labels = np.random.default_rng(8).integers(0, NUM_CLASSES, num_nodes)
    labels[::17] = -1
    return labels


def labelled_graph() -> SmallGraph:
    """200 nodes whose features say nothing of their labels."""
    return homogeneous(num_nodes=200, dim=5)


def write_embeddings(
    store: Store,
    out: Path,
    rows: NDArray[np.float32],
    *,
    ids: list[int | str] | None = None,
    num_nodes: int | None = None,
) -> None:
    """A finished result for node type `node`: `rows` in the graph's own order, or for `ids`."""
    names = user_ids(labelled_graph(), 0) if ids is None else ids
    place = Place(str(out))
    with PartWriter(
        place.child("_unfinished"), node_type="node", ids=iter([pa.array(names)]), dim=rows.shape[1]
    ) as writer:
        writer.write(rows)
    commit(
        place,
        EmbeddingManifest(
            format_version=1,
            run="by hand",
            step=9,
            encoder={},
            store=store.place.url,
            generation=0,
            generation_xxh64=store.generation_xxh64,
            dim=rows.shape[1],
            node_types=(
                EmbeddedType(name="node", num_nodes=num_nodes or len(rows), id_type="int64", parts=tuple(writer.parts)),
            ),
        ),
    )


def random_encoder(store: Store) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_encoder(EncoderConfig(hidden_dim=8), schema=GraphSchema.from_store(store))


def run(
    store: Store,
    embeddings: str,
    work: Path,
    *,
    config: EvaluationConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluationReport:
    return evaluate(
        store,
        embeddings=embeddings,
        random_encoder=lambda: random_encoder(store),
        config=config or EvaluationConfig(train_fraction=0.3, val_fraction=0.2),
        seed=seed,
        work=Place(str(work / "work")),
        pictures=Place(str(work / "pictures")),
        cache_bytes=10**6,
        embedding=EmbeddingConfig(rows_per_chunk=50),
        device=torch.device("cpu"),
        progress=progress or NoProgress(),
    )


class Told(NoProgress):
    """The stages told, each with the work announced and the work done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.stages.append((name, total, 0))

    def advance(self, amount: int) -> None:
        name, total, done = self.stages[-1]
        self.stages[-1] = (name, total, done + amount)
