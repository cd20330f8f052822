"""How two rows score a pair: dot product, cosine, or a weighted product that is learned.

All three are dot products of a left and a right row, so a source is compared with many targets by one matrix product.
Shapes: n nodes or pairs, D columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from service.probe import MAX_ITERATIONS, TOLERANCE, normalised, one_blas_thread
from storage.errors import BadInput

Score = Literal["dot", "cosine", "hadamard"]
Lookup = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""dense ids [n] -> rows [n, D]"""
VAL_SHARE = 0.2
"""of the training pairs, kept to choose C where no edges are held out for it"""
PAIRS_PER_BLOCK = 8192


@dataclass(frozen=True)
class Decoder:
    """The score of (u, v) is left(u) . right(v), in float64."""

    left: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    """dense ids [n] of sources -> [n, D]"""
    right: Callable[[NDArray[np.int64]], NDArray[np.float64]]
    """dense ids [n] of targets -> [n, D]"""

    def scores(self, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [n] of pairs [n, 2]."""
        out = np.empty(pairs.shape[0])
        for start in range(0, pairs.shape[0], PAIRS_PER_BLOCK):
            some = pairs[start : start + PAIRS_PER_BLOCK]
            out[start : start + PAIRS_PER_BLOCK] = np.einsum("nd,nd->n", self.left(some[:, 0]), self.right(some[:, 1]))
        return out


@dataclass(frozen=True)
class Examples:
    """Pairs [n, 2] that are edges, and pairs that are none, in random order."""

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]

    def split(self) -> tuple["Examples", "Examples"]:
        """(the most, `VAL_SHARE` of each): at least one of each in both."""
        cut_positive, cut_negative = (
            max(1, len(pairs) - max(1, round(VAL_SHARE * len(pairs)))) for pairs in (self.positives, self.negatives)
        )
        return (
            Examples(self.positives[:cut_positive], self.negatives[:cut_negative]),
            Examples(self.positives[cut_positive:], self.negatives[cut_negative:]),
        )


def make_decoder(
    score: Score,
    sources: Lookup,
    targets: Lookup,
    *,
    train: Examples,
    val: Examples,
    strengths: Sequence[float],
) -> Decoder:
    """The decoder of a score over looked-up rows.

    Args:
        train, val: for hadamard; where `val` is empty a share of `train` takes its place.
        strengths: values of C (inverse L2 penalty) tried for hadamard; the AUC on `val` chooses.
    """
    if score == "dot":
        return Decoder(
            left=lambda ids: sources(ids).astype(np.float64), right=lambda ids: targets(ids).astype(np.float64)
        )
    unit = Decoder(
        left=lambda ids: normalised(sources(ids)).astype(np.float64),
        right=lambda ids: normalised(targets(ids)).astype(np.float64),
    )
    if score == "cosine":
        return unit
    weight = hadamard_weights(unit, train=train, val=val, strengths=strengths)
    return Decoder(left=lambda ids: unit.left(ids) * weight, right=unit.right)


def hadamard_weights(
    unit: Decoder, *, train: Examples, val: Examples, strengths: Sequence[float]
) -> NDArray[np.float64]:
    """Weights [D] of a logistic regression on the columns' products, edges against pairs that are none.

    Products are scaled by one number so that their mean square norm is 1, as that of the probe's rows: the values of
    C then mean the same. The intercept orders nothing and is left out.
    """
    if min(len(train.positives), len(train.negatives)) < 2:
        raise BadInput(
            "evaluation.link.scores=hadamard",
            f"{len(train.positives)} edges between different nodes",
            rule="a learned score needs two edges in the store at least",
            remedy="choose dot or cosine",
        )
    if not len(val.positives):
        train, val = train.split()

    def products(examples: Examples) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        pairs = np.concatenate([examples.positives, examples.negatives])
        truth = np.repeat([1, 0], [len(examples.positives), len(examples.negatives)])
        return unit.left(pairs[:, 0]) * unit.right(pairs[:, 1]), truth

    x_ND, truth = products(train)
    scale = 1.0 / max(float(np.sqrt(np.mean(np.sum(x_ND**2, axis=1)))), 1e-12)
    x_ND *= scale
    val_x, val_truth = products(val)
    best, weight = -1.0, np.zeros(x_ND.shape[1])
    with one_blas_thread():
        for strength in sorted(strengths):
            model = LogisticRegression(solver="lbfgs", C=strength, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
            model.fit(x_ND, truth)
            auc = float(roc_auc_score(val_truth, val_x @ model.coef_[0]))
            if auc > best:
                best, weight = auc, model.coef_[0].copy()
    return np.asarray(weight, dtype=np.float64)
