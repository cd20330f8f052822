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
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import average_precision_score, roc_auc_score

from sampling.keys import subkey
from service.evaluation_report import TaskReport, scores
from service.evaluation_rows import Rows
from service.evaluation_task import FigureTask
from service.link_decoders import Decoder, Examples, Score, make_decoder
from service.link_graph import LinkGraph, distinct, is_symmetric, read_pairs, relation_index
from service.link_ranking import Questions, questions, rank, ranking_figures
from service.probe import shuffled
from storage.errors import BadInput
from storage.graph import Topology
from storage.progress import Progress
from storage.store import Store

LINK_TAG = 0x1142
"""keeps the keys of these draws apart from other uses of the same seed"""
POPULARITY = "popularity"


class LinkConfig(BaseModel):
    """The `evaluation.link` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: str | None = Field(
        None, description="Table of held-out edges (src, dst), as `hopstream holdout` writes it; needed by task link."
    )
    val_edges: str | None = Field(
        None, description="Table of edges held out to choose by: they choose C of hadamard, and are no negatives."
    )
    relation: str | None = Field(None, description="Relation of the held-out edges; unset where there is one only.")
    scores: tuple[Score, ...] = Field(
        ("cosine",),
        min_length=1,
        description="Scores of a pair, each reported: dot, cosine, or hadamard (a logistic regression on products of "
        "the rows' columns, trained on the store's edges).",
    )
    num_draws: int = Field(3, ge=1, description="Draws of everything drawn, over which figures are means.")
    num_candidates: int = Field(
        10_000, ge=1, description="Targets that a true one is ranked among, drawn where there are more."
    )
    top: tuple[int, ...] = Field((10, 20, 50), description="The k of hits@k and recall@k.")
    max_edges: int = Field(10_000, ge=1, description="Held-out edges scored at most, drawn by the seed.")
    max_train_edges: int = Field(10_000, ge=2, description="The store's edges that hadamard learns from at most.")
    in_store: Literal["refuse", "keep"] = Field(
        "refuse", description="Held-out edges that are in the store, so that the encoder may have seen them."
    )


@dataclass(frozen=True)
class Draw:
    """What is drawn once; pairs are [n, 2]."""

    negatives: NDArray[np.int64]
    train: NDArray[np.int64]
    train_negatives: NDArray[np.int64]
    val: NDArray[np.int64]
    val_negatives: NDArray[np.int64]
    asked: Questions

    @property
    def pairs(self) -> list[NDArray[np.int64]]:
        """All of its pairs."""
        return [self.negatives, self.train, self.train_negatives, self.val, self.val_negatives]


@dataclass(frozen=True)
class LinkProblem:
    """Held-out pairs and everything drawn beside them, the same for all rows and scores."""

    graph: LinkGraph
    positives: NDArray[np.int64]
    """[P, 2]"""
    draws: tuple[Draw, ...]
    num_available: int
    """distinct held-out pairs before the limit"""
    num_in_store: int
    """of those, the ones that are edges of the store"""

    def wanted(self) -> dict[int, NDArray[np.int64]]:
        """Dense ids by node type."""
        sources, targets = [self.positives[:, 0]], [self.positives[:, 1]]
        for draw in self.draws:
            sources += [*(pairs[:, 0] for pairs in draw.pairs), draw.asked.sources]
            targets += [*(pairs[:, 1] for pairs in draw.pairs), draw.asked.targets, draw.asked.candidates]
        csc = self.graph.csc
        if self.graph.same_type:
            return {csc.source_type: np.unique(np.concatenate([*sources, *targets]))}
        return {
            csc.source_type: np.unique(np.concatenate(sources)),
            csc.target_type: np.unique(np.concatenate(targets)),
        }


def link_problem(store: Store, topology: Topology, *, config: LinkConfig, seed: int) -> LinkProblem:
    """Read the held-out tables and draw what is compared with them.

    Raises BadInput without a table, for unknown ids or relations, and for held-out edges that are in the store.
    """
    if config.edges is None:
        raise BadInput(
            "evaluation.link.edges",
            "not given",
            rule="link prediction needs a table of held-out edges",
            remedy="make one by `hopstream holdout`, and train on a store of the rest",
        )
    index = relation_index(store, config.relation)
    test = read_pairs(store, index, config.edges)
    val = np.empty((0, 2), dtype=np.int64) if config.val_edges is None else read_pairs(store, index, config.val_edges)
    relation = store.relations[index].relation
    graph = LinkGraph(
        csc=topology.relations[index],
        symmetric=is_symmetric(store, index),
        sources=store.live_ids(relation.source),
        targets=store.live_ids(relation.target),
        held=distinct(np.concatenate([test, val])),
    )
    inside = graph.in_store(test)
    if inside.any() and config.in_store == "refuse":
        raise BadInput(
            config.edges,
            f"{int(inside.sum())} of {inside.shape[0]} pairs are edges of {store.place.url}",
            rule="what is held out is in no block that the encoder was trained on",
            remedy="train on a store of what `hopstream holdout` leaves, or set evaluation.link.in_store to keep",
        )
    limit = config.max_edges
    positives, val = (
        pairs[np.sort(shuffled(pairs.shape[0], seed=seed, words=(LINK_TAG, index, part))[:limit])]
        for part, pairs in enumerate((test, val))
    )
    return LinkProblem(
        graph=graph,
        positives=positives,
        draws=tuple(
            draw_once(graph, positives, val, config=config, key=subkey(np.uint64(LINK_TAG), seed, index, number))
            for number in range(config.num_draws)
        ),
        num_available=test.shape[0],
        num_in_store=int(inside.sum()),
    )


def draw_once(
    graph: LinkGraph,
    positives: NDArray[np.int64],
    val: NDArray[np.int64],
    *,
    config: LinkConfig,
    key: np.uint64,
) -> Draw:
    """Negatives, edges to learn from where a score learns, and candidates, all by `key`."""
    learns = "hadamard" in config.scores
    train = graph.edges(config.max_train_edges if learns else 0, key=subkey(key, 0))
    val = val if learns else val[:0]
    asked = graph.directed(positives)
    order = shuffled(graph.targets.shape[0], seed=int(subkey(key, 1) >> np.uint64(1)), words=())
    sources = np.unique(asked[:, 0])
    indptr, known = graph.known_targets(sources)
    known_of = np.repeat(sources, np.diff(indptr))
    excluded = [np.stack([known_of, known], axis=1), graph.directed(graph.held)]
    if graph.same_type:
        excluded.append(np.stack([sources, sources], axis=1))
    return Draw(
        negatives=graph.negatives(positives.shape[0], key=subkey(key, 2)),
        train=train,
        train_negatives=graph.negatives(train.shape[0], key=subkey(key, 3)),
        val=val,
        val_negatives=graph.negatives(val.shape[0], key=subkey(key, 4)),
        asked=questions(
            asked,
            candidates=np.sort(graph.targets[order[: config.num_candidates]]),
            excluded=np.concatenate(excluded),
        ),
    )


class LinkTask(FigureTask):
    """Link prediction in one relation by one score."""

    def __init__(self, problem: LinkProblem, *, score: Score, config: LinkConfig, strengths: Sequence[float]) -> None:
        draw = problem.draws[0]
        super().__init__(
            "link",
            of=str(problem.graph.csc.relation),
            settings={
                "score": score,
                "edges": problem.positives.shape[0],
                "edges_available": problem.num_available,
                "edges_in_store": problem.num_in_store,
                "draws": len(problem.draws),
                "candidates": draw.asked.candidates.shape[0],
                "train_edges": draw.train.shape[0] if score == "hadamard" else 0,
                "symmetric": problem.graph.symmetric,
            },
        )
        self._problem = problem
        self._score: Score = score
        self._top = config.top
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
            for name, value in self._judge(decoder, draw).items():
                found.setdefault(name, []).append(value)
            progress.advance(1)
        return found

    def _judge(self, decoder: Decoder, draw: Draw) -> dict[str, float]:
        positive, negative = decoder.scores(self._problem.positives), decoder.scores(draw.negatives)
        truth = np.repeat([1, 0], [positive.shape[0], negative.shape[0]])
        given = np.concatenate([positive, negative])
        asked = draw.asked
        ranks = rank(
            asked,
            left_QD=decoder.left(asked.sources),
            right_CD=decoder.right(asked.candidates),
            right_PD=decoder.right(asked.targets),
        )
        return {
            "auc": 100.0 * float(roc_auc_score(truth, given)),
            "ap": 100.0 * float(average_precision_score(truth, given)),
            **ranking_figures(asked, ranks, top=self._top),
        }

    def report(self) -> TaskReport:
        """What was found, with the popularity baseline behind it."""
        csc = self._problem.graph.csc
        out_degree = 1.0 + csc.out_degree.astype(np.float64)  # a source without edges still prefers what is popular
        in_degree = np.diff(csc.indptr).astype(np.float64)
        decoder = Decoder(left=lambda ids: out_degree[ids][:, None], right=lambda ids: in_degree[ids][:, None])
        found: dict[str, list[float]] = {}
        for draw in self._problem.draws:
            for name, value in self._judge(decoder, draw).items():
                found.setdefault(name, []).append(value)
        self.results.append(scores(POPULARITY, dim=1, figures=found, seconds=0.0))
        return super().report()
