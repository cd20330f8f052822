"""What an evaluation found, as plain data for tables and JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from service.probe import ProbeResult

RowsName = Literal["trained", "raw", "sgc", "random_init"]
ROW_NAMES: tuple[RowsName, ...] = ("trained", "raw", "sgc", "random_init")
TaskName = Literal["probe", "knn", "few_shot", "clustering", "link", "picture"]


@dataclass(frozen=True)
class RowsReport:
    """The probe on one kind of rows, over all splits."""

    rows: RowsName
    dim: int | None
    """columns; None where the baseline does not exist"""
    accuracy: float | None
    """mean test accuracy in percent over the splits; None where the baseline does not exist"""
    deviation: float | None
    """sample standard deviation over the splits in percent; 0 for one split"""
    val_accuracy: float | None
    """mean validation accuracy in percent, by which C was chosen"""
    accuracies: tuple[float, ...]
    """test accuracy in percent of each split"""
    strengths: tuple[float, ...]
    """C chosen in each split"""
    num_unconverged: int
    """splits whose chosen fit reached its limit of iterations"""
    seconds: float
    """computing or reading the rows, and probing"""
    note: str
    """why there is no result; empty otherwise"""


@dataclass(frozen=True)
class TypeReport:
    """One node type with labels."""

    node_type: str
    num_nodes: int
    num_labelled: int
    """nodes with a label and, where the data has splits, in one"""
    num_classes: int
    split: Literal["data", "random"]
    """the data's own train/val/test, or random splits"""
    num_splits: int
    train_rows: int
    """training rows used in each split"""
    val_rows: int
    test_rows: int
    train_rows_available: int
    """before the limits of rows"""
    val_rows_available: int
    test_rows_available: int
    results: tuple[RowsReport, ...]
    """trained, raw, sgc, random_init"""

    def accuracy(self, rows: RowsName) -> float | None:
        """Mean test accuracy in percent of one kind of rows."""
        return next(result.accuracy for result in self.results if result.rows == rows)


@dataclass(frozen=True)
class Figure:
    """One measure over splits, draws or seeds."""

    mean: float
    deviation: float
    """sample standard deviation; 0 for one value"""
    values: tuple[float, ...]


@dataclass(frozen=True)
class Scores:
    """One kind of rows at one task."""

    rows: str
    """a `RowsName`, or the name of a baseline of the task's own"""
    dim: int | None
    """columns; None where these rows do not exist"""
    figures: dict[str, Figure]
    """empty where these rows do not exist"""
    seconds: float
    """computing or reading the rows, and scoring them"""
    note: str
    """why there is no result; empty otherwise"""


@dataclass(frozen=True)
class TaskReport:
    """One task other than the probe, for one node type or relation.

    Accuracies and the figures of link prediction are in percent; nmi and ari are as they are defined, at most 1.
    """

    task: TaskName
    of: str
    """node type or relation"""
    settings: dict[str, int | float | str | bool]
    """what was done and on how much"""
    results: tuple[Scores, ...]

    def mean(self, rows: str, figure: str) -> float | None:
        """Mean of a figure for one kind of rows; None where there is none."""
        found = next(result.figures.get(figure) for result in self.results if result.rows == rows)
        return None if found is None else found.mean


@dataclass(frozen=True)
class EvaluationReport:
    """The whole evaluation."""

    embeddings: str
    """where they were read from"""
    run: str
    """run that trained the encoder"""
    step: int
    """its training steps"""
    seed: int
    """of splits and of the random encoder"""
    seconds: float
    node_types: tuple[TypeReport, ...]
    """the probe of each type; empty where it was not asked for"""
    tasks: tuple[TaskReport, ...]
    """the other tasks, in the order asked for"""

    def to_json(self) -> dict[str, Any]:
        """The same as nested dictionaries and lists."""
        return asdict(self)


def figure(values: Sequence[float]) -> Figure:
    """Mean and sample deviation of one value or more."""
    mean = math.fsum(values) / len(values)
    spread = math.fsum((value - mean) ** 2 for value in values)
    return Figure(
        mean=mean,
        deviation=math.sqrt(spread / (len(values) - 1)) if len(values) > 1 else 0.0,
        values=tuple(values),
    )


def scores(rows: str, *, dim: int, figures: Mapping[str, Sequence[float]], seconds: float) -> Scores:
    """The result of rows that exist."""
    return Scores(
        rows=rows,
        dim=dim,
        figures={name: figure(values) for name, values in figures.items()},
        seconds=seconds,
        note="",
    )


def no_scores(rows: str, *, note: str) -> Scores:
    """The result of rows that do not exist."""
    return Scores(rows=rows, dim=None, figures={}, seconds=0.0, note=note)


def summarise(rows: RowsName, *, dim: int, probes: list[ProbeResult], seconds: float) -> RowsReport:
    """Mean and deviation over the splits."""
    accuracy = figure([100.0 * result.test_accuracy for result in probes])
    return RowsReport(
        rows=rows,
        dim=dim,
        accuracy=accuracy.mean,
        deviation=accuracy.deviation,
        val_accuracy=figure([100.0 * result.val_accuracy for result in probes]).mean,
        accuracies=accuracy.values,
        strengths=tuple(result.strength for result in probes),
        num_unconverged=sum(not result.converged for result in probes),
        seconds=seconds,
        note="",
    )


def absent(rows: RowsName, *, note: str) -> RowsReport:
    """A baseline that does not exist for a node type."""
    return RowsReport(
        rows=rows,
        dim=None,
        accuracy=None,
        deviation=None,
        val_accuracy=None,
        accuracies=(),
        strengths=(),
        num_unconverged=0,
        seconds=0.0,
        note=note,
    )
