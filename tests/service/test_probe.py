"""The linear probe and its splits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.probe import ProbeResult, Split, SplitSizes, limited, normalised, probe_splits, random_split

STRENGTHS = (0.01, 1.0, 100.0)
NO_LIMIT = SplitSizes(train=10**9, val=10**9, test=10**9)


def clusters(num_rows: int, *, num_classes: int, noise: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, num_classes, num_rows)
    rows = np.eye(num_classes)[labels] + noise * rng.normal(size=(num_rows, num_classes))
    return rows.astype(np.float32), labels


def probe(
    rows: NDArray[np.float32], *, labels: NDArray[np.int64], split: Split, strengths: tuple[float, ...]
) -> ProbeResult:
    (result,) = probe_splits(rows, labels=labels, splits=[split], strengths=strengths, num_threads=1)
    return result


def thirds(num_rows: int) -> Split:
    return Split(*(np.arange(part, num_rows, 3) for part in range(3)))


def test_separable_rows_are_classified_perfectly() -> None:
    rows, labels = clusters(300, num_classes=4, noise=0.05)
    result = probe(rows, labels=labels, split=thirds(300), strengths=STRENGTHS)
    assert result.test_accuracy == 1.0
    assert result.val_accuracy == 1.0
    assert result.converged


def test_shuffled_labels_are_predicted_about_as_often_as_by_chance() -> None:
    rows, labels = clusters(3000, num_classes=4, noise=0.05)
    shuffled = np.random.default_rng(2).permutation(labels)
    result = probe(rows, labels=shuffled, split=thirds(3000), strengths=STRENGTHS)
    assert result.test_accuracy == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1000) ** 0.5)


def test_two_classes_and_labels_with_gaps_are_fine() -> None:
    rows, labels = clusters(120, num_classes=2, noise=0.05)
    result = probe(rows, labels=np.where(labels == 0, 3, 90), split=thirds(120), strengths=STRENGTHS)
    assert result.test_accuracy == 1.0


def test_the_strength_is_chosen_on_validation_labels_only() -> None:
    rows, labels = clusters(240, num_classes=5, noise=0.8)
    split = thirds(240)
    first = probe(rows, labels=labels, split=split, strengths=STRENGTHS)
    permuted = labels.copy()
    permuted[split.test] = np.random.default_rng(3).permutation(labels[split.test])
    second = probe(rows, labels=permuted, split=split, strengths=STRENGTHS)
    assert second.strength == first.strength
    assert second.val_accuracy == first.val_accuracy
    assert second.test_accuracy < first.test_accuracy


def test_of_equally_good_strengths_the_smallest_wins() -> None:
    rows, labels = clusters(300, num_classes=3, noise=0.01)
    result = probe(rows, labels=labels, split=thirds(300), strengths=(100.0, 1.0, 10.0))
    assert result.strength == 1.0


def test_the_scale_of_a_row_does_not_matter() -> None:
    rows, labels = clusters(240, num_classes=5, noise=0.8)
    scale = np.random.default_rng(4).uniform(0.5, 20.0, size=(240, 1)).astype(np.float32)
    one = probe(rows, labels=labels, split=thirds(240), strengths=STRENGTHS)
    other = probe(rows * scale, labels=labels, split=thirds(240), strengths=STRENGTHS)
    assert other.test_accuracy == pytest.approx(one.test_accuracy, abs=0.02)


def test_rows_of_zeros_stay_zeros() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    np.testing.assert_allclose(normalised(rows), [[0.0, 0.0], [0.6, 0.8]], rtol=1e-6)


@settings(deadline=None)  # the first example compiles a kernel
@given(num_rows=st.integers(3, 200), seed=st.integers(0, 2**31 - 1), number=st.integers(0, 20))
def test_a_random_split_is_a_partition_with_the_shares_asked_for(num_rows: int, seed: int, number: int) -> None:
    rows = np.arange(num_rows) * 3 + 1
    split = random_split(rows, fractions=(0.1, 0.2), sizes=NO_LIMIT, seed=seed, words=(0, number))
    np.testing.assert_array_equal(split.rows(), rows)
    assert split.train.size == max(1, round(0.1 * num_rows))
    assert split.val.size == max(1, round(0.2 * num_rows))


def test_splits_follow_their_seed_and_number_and_nothing_else() -> None:
    def split(seed: int, number: int) -> list[int]:
        part = random_split(np.arange(50), fractions=(0.3, 0.3), sizes=NO_LIMIT, seed=seed, words=(0, number))
        return [int(row) for row in part.train]

    assert split(5, 1) == split(5, 1)
    assert split(5, 1) != split(5, 2)
    assert split(5, 1) != split(6, 1)


def test_limits_draw_rows_of_each_part_evenly() -> None:
    split = Split(train=np.arange(0, 1000), val=np.arange(1000, 1005), test=np.arange(1005, 3005))
    cut = limited(split, sizes=SplitSizes(train=100, val=10, test=50), seed=0, words=(0,))
    assert (cut.train.size, cut.val.size, cut.test.size) == (100, 5, 50)
    assert set(cut.train) <= set(split.train)
    assert set(cut.test) <= set(split.test)
    assert cut.train.max() > 900  # a draw, not a prefix
    assert cut.train.min() < 100


def test_several_splits_are_probed_in_order_whatever_the_threads() -> None:
    rows, labels = clusters(400, num_classes=5, noise=0.8)
    splits = [
        random_split(np.arange(400), fractions=(0.2, 0.2), sizes=NO_LIMIT, seed=0, words=(0, number))
        for number in range(4)
    ]
    one, two = (
        list(probe_splits(rows, labels=labels, splits=splits, strengths=STRENGTHS, num_threads=count))
        for count in (1, 3)
    )
    assert one == two
    assert one == [probe(rows, labels=labels, split=split, strengths=STRENGTHS) for split in splits]
