"""A pretrained run whose store is known as plain arrays, and what tests do with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from service.pretraining import pretrain
from service.results import embed_run
from service.run_file import RunFile, load_run_file
from storage.progress import NoProgress
from tests.data import small_run
from tests.service.batches import SmallGraph, homogeneous
from tests.service.stores import ingested

NUM_CLASSES = 3


def planted() -> tuple[SmallGraph, NDArray[np.int64]]:
    """A graph with a label a node that shows in its features and its neighbours: -1, or one of 4, 7 and 9."""
    graph = homogeneous(num_nodes=240, dim=6)
    rng = np.random.default_rng(4)
    classes = rng.integers(0, NUM_CLASSES, 240)
    features, sources = graph.features[0], graph.indices[0].copy()
    assert features is not None
    features[:, :NUM_CLASSES] += 2.0 * np.eye(NUM_CLASSES)[classes]
    targets = np.repeat(np.arange(240), graph.in_degree(0))
    members = [np.flatnonzero(classes == number) for number in range(NUM_CLASSES)]
    for edge in np.flatnonzero(rng.random(len(sources)) < 0.8):
        sources[edge] = rng.choice(members[classes[targets[edge]]])
    labels = np.array([4, 7, 9])[classes]
    labels[::19] = -1
    return replace(graph, indices=(sources,)), labels


SPLIT = np.array(["train", "train", "val", "test", "test", "none"])[np.arange(240) % 6]


def pretrained(
    folder: Path, *, labels: NDArray[np.int64] | None = None, objective: dict[str, Any] | None = None
) -> RunFile:
    """A finished run of a few steps on the planted graph, embedded; with other labels or another objective."""
    graph, own = planted()
    ingested(graph, folder, columns={"node": {"label": own if labels is None else labels, "split": SPLIT}})
    path = small_run(folder)
    if objective is not None:
        document = yaml.safe_load(path.read_text()) | {"objective": objective}
        document["sampling"]["fanouts"] = [4, 4]  # it reads no further than the encoder
        path.write_text(yaml.safe_dump(document))
    run = load_run_file(str(path))
    pretrain(run, progress=NoProgress())
    embed_run(run, store_url=None, out=None, progress=NoProgress())
    return run


def changed(run: RunFile, *overrides: str) -> RunFile:
    """The run with some keys changed."""
    stored = Path(run.run.storage) / run.run.name / "run.yaml"
    return load_run_file(str(stored), overrides=overrides)


class StoppedAt(NoProgress):
    """Ctrl-C when so much of a stage is done."""

    def __init__(self, stage: str, amount: int) -> None:
        self._stage, self._amount = stage, amount
        self._now = ""
        self._done = 0

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self._now, self._done = name, 0

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._now == self._stage and self._done == self._amount:
            raise KeyboardInterrupt


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for reports and states, which name the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("report.json", "state.json")
    }
