"""Nearest neighbours, few-shot classification and clustering against plain reimplementations."""

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from sampling.keys import subkey
from service.clustering import CLUSTERING_TAG, ClusteringConfig, ClusteringTask, clusters
from service.evaluation_rows import Rows
from service.few_shot import FewShotConfig, FewShotTask, draw_shots, few_shot_accuracy
from service.knn import KnnConfig, KnnTask, nearest_neighbors
from service.labelled_rows import LabelledType
from service.probe import Split
from storage.errors import BadInput
from storage.progress import NoProgress

NUM_CLASSES = 3


def noisy(num_rows: int, *, noise: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, NUM_CLASSES, num_rows)
    rows = np.eye(NUM_CLASSES, 6)[labels] + noise * rng.normal(size=(num_rows, 6))
    return rows.astype(np.float32), labels


def thirds(num_rows: int) -> Split:
    return Split(*(np.arange(part, num_rows, 3) for part in range(3)))


def labelled(labels: NDArray[np.int64], *splits: Split) -> LabelledType:
    known = labels[labels >= 0]
    return LabelledType(
        name="node",
        index=0,
        labels=labels,
        num_labelled=len(known),
        num_classes=len(np.unique(known)),
        kind="random",
        splits=splits,
        available=(0, 0, 0),
    )


def of_all(x_ND: NDArray[np.float32]) -> Rows:
    return Rows(name="raw", ids=[np.arange(len(x_ND))], x=[x_ND], seconds=0.0)


def vote(
    x_ND: NDArray[np.float32], labels: NDArray[np.int64], train: NDArray[np.int64], row: int, neighbors: int
) -> int:
    """The commonest class among the nearest by angle, of equals the smallest."""
    cosine = [float(x_ND[row] @ x_ND[one] / np.linalg.norm(x_ND[row]) / np.linalg.norm(x_ND[one])) for one in train]
    nearest = sorted(range(len(train)), key=lambda place: -cosine[place])[:neighbors]
    counts = Counter(int(labels[train[place]]) for place in nearest)
    return min(counts, key=lambda label: (-counts[label], label))


def test_nearest_neighbours_vote_as_counted_by_hand_with_the_k_that_validation_chooses() -> None:
    rows, labels = noisy(150, noise=0.8)
    split = thirds(150)
    result = nearest_neighbors(rows, labels=labels, split=split, neighbors=(9, 1, 4, 500))
    val, test = {}, {}
    for count in (1, 4, 9, 50):
        val[count] = np.mean([vote(rows, labels, split.train, row, count) == labels[row] for row in split.val])
        test[count] = np.mean([vote(rows, labels, split.train, row, count) == labels[row] for row in split.test])
    best = max(val, key=lambda count: (val[count], -count))
    assert result.neighbors == best
    assert result.val_accuracy == pytest.approx(val[best])
    assert result.test_accuracy == pytest.approx(test[best])


def test_the_task_of_neighbours_reports_each_split_in_percent() -> None:
    rows, labels = noisy(150, noise=0.8)
    splits = (thirds(150), Split(*(np.arange(part, 150, 3) for part in (2, 0, 1))))
    task = KnnTask(labelled(labels, *splits), config=KnnConfig(neighbors=(3,)))
    task.score(of_all(rows), NoProgress())
    (result,) = task.report().results
    for number, split in enumerate(splits):
        wanted = np.mean([vote(rows, labels, split.train, row, 3) == labels[row] for row in split.test])
        assert result.figures["accuracy"].values[number] == pytest.approx(100.0 * wanted)
    assert result.figures["neighbors"].values == (3.0, 3.0)
    assert result.dim == 6


def test_shots_are_training_rows_of_each_class_and_fewer_are_a_part_of_more() -> None:
    _, labels = noisy(150, noise=0.0)
    train = thirds(150).train
    draws = {}
    for shots in (2, 5, 1000):
        drawn = draw_shots(train, labels=labels, shots=shots, seed=0, words=(0, 1))
        assert set(drawn) <= set(train)
        assert len(set(drawn)) == len(drawn)
        available = Counter(labels[train].tolist())
        assert Counter(labels[drawn].tolist()) == {label: min(shots, available[label]) for label in available}
        draws[shots] = set(drawn.tolist())
    assert draws[2] < draws[5] < draws[1000]
    assert draws[2] != set(draw_shots(train, labels=labels, shots=2, seed=0, words=(0, 2)).tolist())
    assert draws[2] != set(draw_shots(train, labels=labels, shots=2, seed=1, words=(0, 1)).tolist())


def test_one_shot_is_decided_by_the_nearer_example() -> None:
    # with one example a class, equally long, the border of a logistic regression lies half way between the two
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [5.0, 4.0], [0.1, 0.2], [3.0, 1.0]], dtype=np.float32)
    labels = np.array([4, 9, 4, 9, 9])
    accuracy = few_shot_accuracy(rows, labels=labels, shots=np.array([0, 1]), test=np.array([2, 3, 4]), strength=1.0)
    assert accuracy == pytest.approx(2 / 3)


def test_few_shot_scores_every_draw_and_grows_with_shots() -> None:
    rows, labels = noisy(600, noise=0.6)
    task = FewShotTask(labelled(labels, thirds(600)), config=FewShotConfig(shots=(20, 1), num_draws=6), seed=0)
    task.score(of_all(rows), NoProgress())
    report = task.report()
    (result,) = report.results
    assert list(result.figures) == ["1_shot", "20_shot"]
    assert len(result.figures["1_shot"].values) == 6
    assert result.figures["1_shot"].mean < result.figures["20_shot"].mean
    assert report.settings["rows_of_smallest_class"] == min(Counter(labels[thirds(600).train].tolist()).values())


def entropy(labels: NDArray[np.int64]) -> float:
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def test_clusters_of_separate_classes_are_the_classes() -> None:
    rows, labels = noisy(200, noise=0.02)
    task = ClusteringTask(labelled(labels, thirds(200)), config=ClusteringConfig(num_seeds=2), seed=0)
    task.score(of_all(rows), NoProgress())
    (result,) = task.report().results
    assert result.figures["nmi"].values == pytest.approx((1.0, 1.0))
    assert result.figures["ari"].values == pytest.approx((1.0, 1.0))


def test_nmi_and_ari_are_those_of_their_formulas_on_labelled_nodes_only() -> None:
    rows, labels = noisy(120, noise=0.9)
    labels[::5] = -1
    task = ClusteringTask(labelled(labels, thirds(120)), config=ClusteringConfig(num_seeds=1, num_clusters=4), seed=0)
    task.score(of_all(rows), NoProgress())
    (result,) = task.report().results
    known = np.flatnonzero(labels >= 0)
    assert np.array_equal(task.wanted[0], known)
    seed = int(subkey(np.uint64(CLUSTERING_TAG), 0, 0) >> np.uint64(32))
    nmi, ari = measures(labels[known], clusters(rows[known], num_clusters=4, num_starts=10, seed=seed))
    assert result.figures["nmi"].mean == pytest.approx(nmi)
    assert result.figures["ari"].mean == pytest.approx(ari)


def measures(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[float, float]:
    """NMI from entropies, ARI from all pairs."""
    both = labels * 100 + groups
    mutual = entropy(labels) + entropy(groups) - entropy(both)
    nmi = mutual / (0.5 * (entropy(labels) + entropy(groups)))
    count = len(labels)
    same_label = same_group = same_both = 0
    for one in range(count):
        for other in range(one):
            same_label += labels[one] == labels[other]
            same_group += groups[one] == groups[other]
            same_both += labels[one] == labels[other] and groups[one] == groups[other]
    expected = same_label * same_group / math.comb(count, 2)
    return nmi, (same_both - expected) / (0.5 * (same_label + same_group) - expected)


def test_more_clusters_than_rows_are_refused() -> None:
    _, labels = noisy(30, noise=0.1)
    with pytest.raises(BadInput, match="9 clusters of 5 rows"):
        ClusteringTask(labelled(labels, thirds(30)), config=ClusteringConfig(num_clusters=9, max_rows=5), seed=0)
