"""Link prediction: whether rows tell held-out edges from pairs that are none, and rank true targets first.

    test table of held-out edges ----> pairs           area under the ROC curve (auc) and average precision (ap),
    uniform pairs that are no edge --> one for each    by the scores of the pairs
    all targets, or some ------------> candidates      mrr, hits@k, recall@k (`service.link_ranking`)

A pair's score is a product of two rows: as they are (dot), normalised (cosine), or weighted column by column with
weights learned from the store's edges (hadamard). Everything drawn is drawn `num_draws` times, and the figures are
means over the draws. Beside the rows of every evaluation stands `popularity`, which knows degrees only.
Protocol: Kipf and Welling, "Variational graph auto-encoders", 2016, section 3 (85/5/10 edges, AUC and AP).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from service.evaluation_report import TaskReport, scores
from service.evaluation_rows import Rows
from service.evaluation_task import FigureTask
from service.link_decoders import Examples, Score, make_decoder
from service.link_problem import LinkProblem
from storage.progress import Progress

POPULARITY = "popularity"


class LinkTask(FigureTask):
    """Link prediction in one relation by one score."""

    def __init__(self, problem: LinkProblem, *, score: Score, strengths: Sequence[float]) -> None:
        draw = problem.draws[0]
        super().__init__(
            "link",
            of=str(problem.graph.csc.relation),
            settings={
                "score": score,
                "edges": problem.positives.shape[0],
                "edges_available": problem.num_available,
                "edges_in_store": problem.num_in_store,
                "reversed_in_store": problem.num_reversed_in_store,
                "ranked": draw.asked.targets.shape[0],
                "draws": len(problem.draws),
                "candidates": draw.asked.candidates.shape[0],
                "train_edges": draw.train.shape[0] if score == "hadamard" else 0,
                "symmetric": problem.graph.symmetric,
            },
        )
        self._problem = problem
        self._score: Score = score
        self._strengths = strengths
        self._wanted = problem.wanted()

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """Both ends of all pairs, and the candidates."""
        return self._wanted

    @property
    def num_rounds(self) -> int:
        """One a draw."""
        return len(self._problem.draws)

    def score(self, rows: Rows, progress: Progress) -> None:
        """Keep the figures of one kind of rows; rows of two types must be equally wide to be multiplied."""
        widths = {table.shape[1] for index in self._wanted if (table := rows.x[index]) is not None}
        if len(widths) > 1:
            found = " and ".join(map(str, sorted(widths)))
            self.leave_out(rows.name, note=f"rows of the two node types have {found} columns")
        else:
            super().score(rows, progress)

    def figures(self, rows: Rows, progress: Progress) -> Mapping[str, Sequence[float]]:
        """Figures in percent of each draw."""
        csc = self._problem.graph.csc
        found: dict[str, list[float]] = {}
        for draw in self._problem.draws:
            decoder = make_decoder(
                self._score,
                lambda ids: rows.of(csc.source_type, ids),
                lambda ids: rows.of(csc.target_type, ids),
                train=Examples(draw.train, draw.train_negatives),
                val=Examples(draw.val, draw.val_negatives),
                strengths=self._strengths,
            )
            for name, value in self._problem.judge(decoder, draw).items():
                found.setdefault(name, []).append(value)
            progress.advance(1)
        return found

    def report(self) -> TaskReport:
        """What was found, with the popularity baseline behind it."""
        self.results.append(scores(POPULARITY, dim=1, figures=self._problem.popularity, seconds=0.0))
        return super().report()
