"""Few-shot classification: a logistic regression on n labels a class, over many draws of them.

Rows are L2-normalised and C is fixed, for with so few labels there are none to choose it by; the protocol is the
linear baseline of Tian et al., "Rethinking few-shot image classification", ECCV 2020, section 3. All classes are told
apart at once, on the same test rows as the probe's. Shapes: N rows, D columns.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.linear_model import LogisticRegression

from service.evaluation_rows import Rows
from service.evaluation_task import FigureTask
from service.labelled_rows import LabelledType
from service.probe import MAX_ITERATIONS, TOLERANCE, normalised, one_blas_thread, shuffled
from storage.progress import Progress

FEW_SHOT_TAG = 0xFE35
"""a word of the keys of draws, which tells them from those of splits"""


class FewShotConfig(BaseModel):
    """The `evaluation.few_shot` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5), min_length=1, description="Labels a class; a class with fewer training rows gives all it has."
    )
    num_draws: int = Field(20, ge=1, description="Draws of labelled nodes for each number of shots.")
    strength: float = Field(1.0, gt=0, description="C (inverse L2 penalty) of the logistic regression.")


def draw_shots(
    train: NDArray[np.int64], *, labels: NDArray[np.int64], shots: int, seed: int, words: Sequence[int]
) -> NDArray[np.int64]:
    """Up to `shots` rows of each class among the rows `train`, ascending.

    Under the same seed and words fewer shots are a part of more.
    """
    kept = []
    for label in np.unique(labels[train]):
        rows = train[labels[train] == label]
        order = shuffled(rows.shape[0], seed=seed, words=(FEW_SHOT_TAG, *words, int(label)))
        kept.append(rows[order[:shots]])
    return np.sort(np.concatenate(kept))


def few_shot_accuracy(
    x_ND: NDArray[np.float32],
    *,
    labels: NDArray[np.int64],
    shots: NDArray[np.int64],
    test: NDArray[np.int64],
    strength: float,
) -> float:
    """Share of the rows `test` that a logistic regression on the rows `shots` classifies rightly."""
    model = LogisticRegression(solver="lbfgs", C=strength, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    model.fit(normalised(x_ND[shots]), labels[shots])
    return float(np.mean(model.predict(normalised(x_ND[test])) == labels[test]))


class FewShotTask(FigureTask):
    """Few-shot classification of one node type; draw number i is made in split i modulo their number."""

    def __init__(self, kind: LabelledType, *, config: FewShotConfig, seed: int) -> None:
        fewest = min(int(np.unique(kind.labels[split.train], return_counts=True)[1].min()) for split in kind.splits)
        super().__init__(
            "few_shot",
            of=kind.name,
            settings={"draws": config.num_draws, "splits": len(kind.splits), "rows_of_smallest_class": fewest},
        )
        self._kind = kind
        self._config = config
        self._seed = seed
        self._rows = kind.rows()

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Rows of all splits."""
        return {self._kind.index: self._rows}

    @property
    def num_rounds(self) -> int:
        """One a draw and number of shots."""
        return self._config.num_draws * len(self._config.shots)

    def figures(self, rows: Rows, progress: Progress) -> Mapping[str, Sequence[float]]:
        """Accuracies in percent over the draws, for each number of shots."""
        x_ND = rows.of(self._kind.index, self._rows)
        labels = self._kind.labels[self._rows]
        splits = [split.within(self._rows) for split in self._kind.splits]
        found: dict[str, list[float]] = {f"{shots}_shot": [] for shots in sorted(self._config.shots)}
        with one_blas_thread():
            for number in range(self._config.num_draws):
                split = splits[number % len(splits)]
                for shots in sorted(self._config.shots):
                    drawn = draw_shots(
                        split.train, labels=labels, shots=shots, seed=self._seed, words=(self._kind.index, number)
                    )
                    accuracy = few_shot_accuracy(
                        x_ND, labels=labels, shots=drawn, test=split.test, strength=self._config.strength
                    )
                    found[f"{shots}_shot"].append(100.0 * accuracy)
                    progress.advance(1)
        return found
