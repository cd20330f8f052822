"""Where true targets stand among the candidates: ranks, and the measures made of them.

A source node is asked for its targets; the score of a target is the dot product of two rows. Candidates that the source
is known to be joined to, or that are held out for it, are no wrong answers and take no part (the filtered setting of
Bordes et al., NeurIPS 2013, section 4.1). A rank is 1 + those scored higher + half of those scored the same, so that
rows which are all alike get the middle and not the top.

Shapes: Q sources, P held-out targets over all of them, C candidates, D columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.jit import kernel

BLOCK_BYTES = 64 << 20
"""scores held at once"""
TIE = 2.0 * float(np.finfo(np.float64).eps)
"""times D and the rows' norms: two orders of summing one product differ by less (Higham, 2002, section 3.1)"""


@dataclass(frozen=True)
class Questions:
    """Which targets are looked for, and which candidates take no part."""

    sources: NDArray[np.int64]
    """[Q] dense ids, ascending"""
    source_of: NDArray[np.int64]
    """[P] ascending: each held-out target's place in `sources`"""
    targets: NDArray[np.int64]
    """[P] dense ids"""
    candidates: NDArray[np.int64]
    """[C] dense ids, ascending"""
    masked_source: NDArray[np.int64]
    """[M] ascending: places in `sources`"""
    masked_candidate: NDArray[np.int64]
    """[M] places in `candidates` that take no part for that source"""


@dataclass(frozen=True)
class Ranks:
    """Ranks from 1, [P]."""

    alone: NDArray[np.float64]
    """among the candidates only"""
    together: NDArray[np.float64]
    """among the candidates and the other held-out targets of the same source"""


def questions(
    pairs: NDArray[np.int64],
    *,
    candidates: NDArray[np.int64],
    excluded: NDArray[np.int64],
) -> Questions:
    """Questions for the distinct pairs [P, 2] (source, target).

    Args:
        candidates: [C] dense ids of targets, ascending.
        excluded: [n, 2] (source, target) pairs that are no wrong answers; those of other sources do not matter.
    """
    ordered = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    sources, source_of = np.unique(ordered[:, 0], return_inverse=True)
    place = np.minimum(np.searchsorted(sources, excluded[:, 0]), sources.shape[0] - 1)
    column = np.minimum(np.searchsorted(candidates, excluded[:, 1]), candidates.shape[0] - 1)
    both = (sources[place] == excluded[:, 0]) & (candidates[column] == excluded[:, 1])
    place, column = place[both], column[both]
    order = np.argsort(place, kind="stable")
    return Questions(
        sources=sources,
        source_of=source_of.reshape(-1).astype(np.int64),
        targets=ordered[:, 1],
        candidates=candidates,
        masked_source=place[order],
        masked_candidate=column[order],
    )


def rank(
    asked: Questions,
    *,
    left_QD: NDArray[np.float64],
    right_CD: NDArray[np.float64],
    right_PD: NDArray[np.float64],
) -> Ranks:
    """Rank each held-out target by the dot product of its source's row with its own.

    Args:
        left_QD: rows of `asked.sources`.
        right_CD, right_PD: rows of `asked.candidates` and of `asked.targets`.
    """
    score_P = np.einsum("pd,pd->p", left_QD[asked.source_of], right_PD)
    # a matrix product sums in another order than the line above, so scores of equal rows may differ in the last bits
    norm_P = np.linalg.norm(left_QD, axis=1)[asked.source_of] * np.linalg.norm(right_PD, axis=1)
    slack_P = TIE * left_QD.shape[1] * norm_P
    ahead_P = np.zeros(score_P.shape[0])
    block = max(1, BLOCK_BYTES // (8 * max(1, asked.candidates.shape[0])))
    for start in range(0, asked.sources.shape[0], block):
        score_BC = left_QD[start : start + block] @ right_CD.T
        stop = start + score_BC.shape[0]
        first, last = np.searchsorted(asked.masked_source, (start, stop))
        score_BC[asked.masked_source[first:last] - start, asked.masked_candidate[first:last]] = -np.inf
        first, last = np.searchsorted(asked.source_of, (start, stop))
        mine = slice(first, last)
        _count_ahead(score_BC, asked.source_of[mine] - start, score_P[mine], slack_P[mine], ahead_P[mine])
    others_P = np.zeros(score_P.shape[0])
    _count_others_ahead(asked.source_of, score_P, slack_P, others_P)
    return Ranks(alone=1.0 + ahead_P, together=1.0 + ahead_P + others_P)


def ranking_figures(asked: Questions, ranks: Ranks, *, top: Sequence[int]) -> dict[str, float]:
    """MRR, Hits@k and Recall@k in percent.

    MRR and Hits@k are means over held-out targets, each ranked without the others; Recall@k is the share of a
    source's held-out targets among its k best answers, a mean over sources.
    """
    found = {"mrr": 100.0 * float(np.mean(1.0 / ranks.alone))}
    for count in top:
        found[f"hits@{count}"] = 100.0 * float(np.mean(ranks.alone <= count))
    num_targets = np.bincount(asked.source_of)
    for count in top:
        inside = np.bincount(asked.source_of, weights=ranks.together <= count)
        found[f"recall@{count}"] = 100.0 * float(np.mean(inside / num_targets))
    return found


@kernel
def _count_ahead(
    score_BC: NDArray[np.float64],
    row: NDArray[np.int64],
    score: NDArray[np.float64],
    slack: NDArray[np.float64],
    ahead: NDArray[np.float64],
) -> None:
    """`ahead[p]` = candidates of row `row[p]` that score higher than `score[p]`, and half of those that score it.

    Scores within `slack[p]` of it are the same.
    """
    for number in range(row.shape[0]):
        higher, same = 0, 0
        for column in range(score_BC.shape[1]):
            value = score_BC[row[number], column]
            higher += value > score[number] + slack[number]
            same += abs(value - score[number]) <= slack[number]
        ahead[number] = higher + 0.5 * same


@kernel
def _count_others_ahead(
    source_of: NDArray[np.int64], score: NDArray[np.float64], slack: NDArray[np.float64], ahead: NDArray[np.float64]
) -> None:
    """The same among the held-out targets of one source, which stand together."""
    first = 0
    for number in range(source_of.shape[0]):
        if source_of[number] != source_of[first]:
            first = number
        for other in range(first, number):
            near = max(slack[other], slack[number])
            if score[other] > score[number] + near:
                ahead[number] += 1.0
            elif score[other] < score[number] - near:
                ahead[other] += 1.0
            else:
                ahead[number] += 0.5
                ahead[other] += 0.5
