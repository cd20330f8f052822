"""k nearest neighbours: how far rows of one class lie beside each other, without any fitting.

A test node gets the class that most of its k nearest training rows have, by cosine; the k is the one with the best
accuracy on the validation rows. The protocol is that of instance discrimination (Wu et al., CVPR 2018, section 3.4)
with votes that count alike. Shapes: N rows, D columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.neighbors import KNeighborsClassifier

from service.evaluation_rows import Rows
from service.evaluation_task import FigureTask
from service.labelled_rows import LabelledType
from service.probe import Split, normalised, one_blas_thread
from storage.progress import Progress


class KnnConfig(BaseModel):
    """The `evaluation.knn` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbors: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 3, 5, 10, 20, 50),
        min_length=1,
        description="Numbers of neighbours tried, as far as there are training rows; validation accuracy chooses.",
    )


@dataclass(frozen=True)
class KnnResult:
    """One split."""

    test_accuracy: float
    val_accuracy: float
    neighbors: int
    """the chosen number"""


def nearest_neighbors(
    x_ND: NDArray[np.float32], *, labels: NDArray[np.int64], split: Split, neighbors: Sequence[int]
) -> KnnResult:
    """Classify the test rows by the best k of `neighbors` on validation; of equals the smallest wins.

    Args:
        x_ND: float32, as they come; only their directions count.
        labels: int64 [N].
        neighbors: numbers >= 1; those beyond the training rows count as all of them.
    """
    train = normalised(x_ND[split.train])
    val, test = normalised(x_ND[split.val]), normalised(x_ND[split.test])
    best: tuple[float, int] | None = None
    chosen: KNeighborsClassifier | None = None
    for count in sorted({min(count, train.shape[0]) for count in neighbors}):
        model = KNeighborsClassifier(count, metric="cosine", algorithm="brute").fit(train, labels[split.train])
        accuracy = float(np.mean(model.predict(val) == labels[split.val]))
        if best is None or accuracy > best[0]:
            best, chosen = (accuracy, count), model
    assert best is not None
    assert chosen is not None
    accuracy = float(np.mean(chosen.predict(test) == labels[split.test]))
    return KnnResult(test_accuracy=accuracy, val_accuracy=best[0], neighbors=best[1])


class KnnTask(FigureTask):
    """Nearest neighbours of one node type on the splits of the probe."""

    def __init__(self, kind: LabelledType, *, config: KnnConfig) -> None:
        super().__init__("knn", of=kind.name, settings={"splits": len(kind.splits), "split": kind.kind})
        self._kind = kind
        self._config = config
        self._rows = kind.rows()

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Rows of all splits."""
        return {self._kind.index: self._rows}

    @property
    def num_rounds(self) -> int:
        """One a split."""
        return len(self._kind.splits)

    def figures(self, rows: Rows, progress: Progress) -> Mapping[str, Sequence[float]]:
        """Accuracies in percent, and the number of neighbours chosen, of each split."""
        x_ND = rows.of(self._kind.index, self._rows)
        results = []
        with one_blas_thread():
            for split in self._kind.splits:
                results.append(
                    nearest_neighbors(
                        x_ND,
                        labels=self._kind.labels[self._rows],
                        split=split.within(self._rows),
                        neighbors=self._config.neighbors,
                    )
                )
                progress.advance(1)
        return {
            "accuracy": [100.0 * result.test_accuracy for result in results],
            "val_accuracy": [100.0 * result.val_accuracy for result in results],
            "neighbors": [float(result.neighbors) for result in results],
        }
