"""The linear probe: how well a logistic regression on frozen rows predicts labels.

Rows are L2-normalised; the strength C is the one with the best accuracy on the validation rows, and the test
rows are looked at once, with that C. The protocol is that of DGI (Velickovic et al., ICLR 2019) and BGRL
(Thakoor et al., ICLR 2022, appendix B). Shapes: N rows, D columns.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from sampling.keys import subkey
from sampling.seeds import permute

TOLERANCE = 1e-4
"""largest gradient entry of a finished fit; a tenth of it takes twice as long and moves accuracies by 0.1 point"""
MAX_ITERATIONS = 1000
PATIENCE = 2
SPLIT_TAG = 0x5711_7
"""keeps the keys of splits apart from other uses of the same seed"""


@dataclass(frozen=True)
class Split:
    """Rows for training, for choosing C, and for the result; int64, ascending, disjoint."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]

    def rows(self) -> NDArray[np.int64]:
        """All of them, ascending."""
        return np.sort(np.concatenate([self.train, self.val, self.test]))

    def within(self, rows: NDArray[np.int64]) -> "Split":
        """The same split as places in `rows`, which are ascending and hold all of it."""
        return Split(*(np.searchsorted(rows, part) for part in (self.train, self.val, self.test)))


@dataclass(frozen=True)
class SplitSizes:
    """At most this many rows of each part are used; the others are left out by a keyed draw."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class ProbeResult:
    """One probe on one split."""

    test_accuracy: float
    val_accuracy: float
    strength: float
    """the chosen C"""
    converged: bool
    """whether the chosen fit ended before its limit of iterations"""


def shuffled(size: int, *, seed: int, words: Sequence[int]) -> NDArray[np.int64]:
    """A keyed permutation of [0, size)."""
    out = np.empty(size, dtype=np.int64)
    permute(np.arange(size, dtype=np.int64), size, subkey(np.uint64(SPLIT_TAG), seed, *words), out)
    return out


def random_split(
    rows: NDArray[np.int64],
    *,
    fractions: tuple[float, float],
    sizes: SplitSizes,
    seed: int,
    words: Sequence[int],
) -> Split:
    """Split `rows` at random: shares `fractions` train and validate (at least one row each), the rest tests.

    Args:
        seed, words: name the draw, as keys do elsewhere.
    """
    order = rows[shuffled(rows.shape[0], seed=seed, words=words)]
    num_train = max(1, round(fractions[0] * rows.shape[0]))
    num_val = max(1, round(fractions[1] * rows.shape[0]))
    train, val, test = np.split(order, [num_train, num_train + num_val])
    return Split(train=np.sort(train[: sizes.train]), val=np.sort(val[: sizes.val]), test=np.sort(test[: sizes.test]))


def limited(split: Split, *, sizes: SplitSizes, seed: int, words: Sequence[int]) -> Split:
    """`split` with at most `sizes` rows a part, the others left out by a keyed draw."""

    def pick(rows: NDArray[np.int64], size: int, part: int) -> NDArray[np.int64]:
        if rows.shape[0] <= size:
            return rows
        return np.sort(rows[shuffled(rows.shape[0], seed=seed, words=(*words, part))[:size]])

    return Split(
        train=pick(split.train, sizes.train, 0),
        val=pick(split.val, sizes.val, 1),
        test=pick(split.test, sizes.test, 2),
    )


def normalised(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its L2 norm; rows of zeros stay."""
    norm_N = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return np.asarray(x_ND / np.where(norm_N > 0, norm_N, 1.0), dtype=np.float32)


def probe_splits(
    x_ND: NDArray[np.float32],
    *,
    labels: NDArray[np.int64],
    splits: Sequence[Split],
    strengths: Sequence[float],
    num_threads: int,
) -> Iterator[ProbeResult]:
    """`probe` on each split, in order, several at once."""
    with one_blas_thread(), ThreadPoolExecutor(num_threads, thread_name_prefix="hopstream-probe") as threads:
        yield from threads.map(lambda split: probe(x_ND, labels=labels, split=split, strengths=strengths), splits)


def probe(
    x_ND: NDArray[np.float32], *, labels: NDArray[np.int64], split: Split, strengths: Sequence[float]
) -> ProbeResult:
    """Fit a logistic regression for every C of `strengths`, keep the best on validation, score it on test.

    Args as of `best_on_validation`.
    """
    model, best = best_on_validation(x_ND, labels=labels, split=split, strengths=strengths)
    predicted = model.predict(normalised(x_ND[split.test]))
    return replace(best, test_accuracy=float(np.mean(predicted == labels[split.test])))


def best_on_validation(
    x_ND: NDArray[np.float32], *, labels: NDArray[np.int64], split: Split, strengths: Sequence[float]
) -> tuple[LogisticRegression, ProbeResult]:
    """The logistic regression of the C that is best on validation, and what is known of it without the test rows.

    Args:
        x_ND: float32, as they come; they are normalised here.
        labels: int64 [N].
        split: whose test part is not looked at.
        strengths: inverse regularisation strengths C of scikit-learn; of equals the smallest wins.

    Fits run from the strongest regularisation to the weakest, each starting from the one before, and end when
    `PATIENCE` of them in a row were no better on validation: the weakest are the slowest. The training rows must
    hold two classes at least.
    """
    train, val = normalised(x_ND[split.train]), normalised(x_ND[split.val])
    model = LogisticRegression(solver="lbfgs", tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    best: ProbeResult | None = None
    coefficients, intercept = np.empty(0), np.empty(0)
    num_worse = 0
    for strength in sorted(strengths):
        model.set_params(C=strength)
        model.fit(train, labels[split.train])
        accuracy = float(np.mean(model.predict(val) == labels[split.val]))
        if best is None or accuracy > best.val_accuracy:
            converged = int(np.max(model.n_iter_)) < MAX_ITERATIONS
            best = ProbeResult(test_accuracy=0.0, val_accuracy=accuracy, strength=float(strength), converged=converged)
            coefficients, intercept = model.coef_.copy(), model.intercept_.copy()
            num_worse = 0
        else:
            num_worse += 1
        if num_worse == PATIENCE:
            break
    assert best is not None
    model.coef_, model.intercept_ = coefficients, intercept
    return model, best


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Fits on one thread, without warnings: convergence is in the result.

    Matrices this small gain nothing from more, and threads that wait for one another on busy cores make a fit up
    to a hundred times slower (measured). The result then does not depend on the number of cores either.
    """
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
