"""What link prediction asks: held-out pairs, and everything drawn beside them.

Held-out pairs beyond the limit are sampled twice: pairs for auc and ap, and sources with all of their held-out targets
for the ranks. Recall@k among some of a source's targets would be higher than among all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import average_precision_score, roc_auc_score

from sampling.keys import subkey
from service.link_decoders import Decoder, Score
from service.link_graph import LinkGraph, pair_keys
from service.link_ranking import Questions, questions, rank, ranking_figures
from service.link_tables import distinct, is_symmetric, read_pairs, relation_index
from service.probe import shuffled
from storage.errors import BadInput
from storage.graph import Topology
from storage.progress import Progress
from storage.store import Store

LINK_TAG = 0x1142
"""keeps the keys of these draws apart from other uses of the same seed"""


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
    top: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 50), description="The k of hits@k and recall@k.")
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
    """[P, 2]: those of auc and ap"""
    draws: tuple[Draw, ...]
    num_available: int
    """distinct held-out pairs before the limit"""
    num_in_store: int
    """of those, the ones that are edges of the store"""
    num_reversed_in_store: int
    """the ones whose reverse is, between nodes of one type"""
    top: tuple[int, ...]
    """the k of hits@k and recall@k"""

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

    def judge(self, decoder: Decoder, draw: Draw) -> dict[str, float]:
        """Figures of one draw in percent."""
        positive, negative = decoder.scores(self.positives), decoder.scores(draw.negatives)
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
            **ranking_figures(asked, ranks, top=self.top),
        }

    @cached_property
    def popularity(self) -> Mapping[str, list[float]]:
        """Figures of degrees alone, of each draw; the same whatever scores are asked for."""
        csc = self.graph.csc
        out_degree = 1.0 + csc.out_degree.astype(np.float64)  # a source without edges still prefers what is popular
        in_degree = np.diff(csc.indptr).astype(np.float64)
        decoder = Decoder(left=lambda ids: out_degree[ids][:, None], right=lambda ids: in_degree[ids][:, None])
        found: dict[str, list[float]] = {}
        for draw in self.draws:
            for name, value in self.judge(decoder, draw).items():
                found.setdefault(name, []).append(value)
        return found


def held_out_table(config: LinkConfig) -> str:
    """The table of held-out edges; BadInput when none is given."""
    if config.edges is None:
        raise BadInput(
            "evaluation.link.edges",
            "not given",
            rule="link prediction needs a table of held-out edges",
            remedy="make one by `hopstream holdout`, and train on a store of the rest",
        )
    return config.edges


def link_problem(store: Store, topology: Topology, *, config: LinkConfig, seed: int) -> LinkProblem:
    """Read the held-out tables and draw what is compared with them.

    Raises BadInput without a table, for unknown ids or relations, for held-out edges that are in the store, and for
    pairs that are in both tables.
    """
    url = held_out_table(config)
    index = relation_index(store, config.relation)
    test = read_pairs(store, index, url)
    val = np.empty((0, 2), dtype=np.int64) if config.val_edges is None else read_pairs(store, index, config.val_edges)
    graph = link_graph(store, topology, index, held=distinct(np.concatenate([test, val])))
    if config.in_store == "refuse":
        refuse_edges(store, graph, {url: test, config.val_edges or "": val}, what="that is evaluated")
    in_both = count_common(graph, test, val)
    if in_both:
        raise BadInput(
            "evaluation.link.val_edges",
            f"{in_both} of {val.shape[0]} pairs are in {url} too, either way round",
            rule="no pair both chooses C and is scored",
            remedy="make both tables by one `hopstream holdout`, with --undirected where both ends are of one type",
        )
    positives, val = (
        pairs[np.sort(shuffled(pairs.shape[0], seed=seed, words=(LINK_TAG, index, part))[: config.max_edges])]
        for part, pairs in enumerate((test, val))
    )
    limit = config.max_edges * (2 if graph.symmetric else 1)
    asked = whole_sources(graph.directed(test), limit=limit, seed=seed, words=(LINK_TAG, index, 2))
    excluded = graph.answers(np.unique(asked[:, 0]))
    return LinkProblem(
        graph=graph,
        positives=positives,
        draws=tuple(
            draw_once(
                graph,
                positives,
                val,
                asked=asked,
                excluded=excluded,
                config=config,
                key=subkey(np.uint64(LINK_TAG), seed, index, number),
            )
            for number in range(config.num_draws)
        ),
        num_available=test.shape[0],
        num_in_store=int(graph.in_store(test).sum()),
        num_reversed_in_store=int(graph.reversed_in_store(test).sum()),
        top=config.top,
    )


def refuse_trained_on(store: Store, *, config: LinkConfig, progress: Progress) -> None:
    """BadInput for held-out edges that are in `store`, the one that an encoder was trained on.

    Its nodes may be others than those of the store that is evaluated: a pair with an unknown end is no edge of it.
    """
    index = relation_index(store, config.relation)
    num_edges = sum(relation.num_edges for relation in store.relations)
    progress.stage("read edges trained on", total=num_edges, unit="edges")
    topology = store.topology()
    progress.advance(num_edges)
    for url in (held_out_table(config), config.val_edges):
        if url is not None:
            pairs = read_pairs(store, index, url, unknown="drop")
            graph = link_graph(store, topology, index, held=pairs)
            refuse_edges(store, graph, {url: pairs}, what="that the encoder was trained on")


def link_graph(store: Store, topology: Topology, index: int, *, held: NDArray[np.int64]) -> LinkGraph:
    """Relation `index` of a store with the pairs `held` [n, 2] out of it."""
    relation = store.relations[index].relation
    return LinkGraph(
        csc=topology.relations[index],
        symmetric=is_symmetric(store, index),
        sources=store.live_ids(relation.source),
        targets=store.live_ids(relation.target),
        held=held,
    )


def refuse_edges(store: Store, graph: LinkGraph, tables: Mapping[str, NDArray[np.int64]], *, what: str) -> None:
    """BadInput when pairs [n, 2] of a table are edges of the store, either way round between nodes of one type."""
    for url, pairs in tables.items():
        num_inside = int((graph.in_store(pairs) | graph.reversed_in_store(pairs)).sum())
        if num_inside:
            raise BadInput(
                url,
                f"{num_inside} of {pairs.shape[0]} pairs are edges of {store.place.url}, the store {what}"
                + (", either way round" if graph.same_type else ""),
                rule="what is held out is in no block that the encoder was trained on",
                remedy="train on a store of what `hopstream holdout` leaves (with --undirected where both ends are of "
                "one type), or set evaluation.link.in_store to keep",
            )


def count_common(graph: LinkGraph, test: NDArray[np.int64], val: NDArray[np.int64]) -> int:
    """How many pairs of `val` [n, 2] are among `test` [m, 2], either way round between nodes of one type."""
    if graph.same_type:
        test, val = np.sort(test, axis=1), np.sort(val, axis=1)
    test_keys, val_keys = (pair_keys(pairs, num_targets=graph.num_targets) for pairs in (test, val))
    return int(np.isin(val_keys, test_keys).sum())


def whole_sources(pairs: NDArray[np.int64], *, limit: int, seed: int, words: tuple[int, ...]) -> NDArray[np.int64]:
    """Pairs [n, 2] of sources drawn while all of their pairs are within `limit`; those of one source at least."""
    sources, source_of, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    if pairs.shape[0] <= limit:
        return pairs
    order = shuffled(sources.shape[0], seed=seed, words=words)
    num_kept = max(1, int(np.searchsorted(np.cumsum(counts[order]), limit, side="right")))
    is_kept = np.zeros(sources.shape[0], dtype=np.bool_)
    is_kept[order[:num_kept]] = True
    return pairs[is_kept[source_of.reshape(-1)]]


def draw_once(
    graph: LinkGraph,
    positives: NDArray[np.int64],
    val: NDArray[np.int64],
    *,
    asked: NDArray[np.int64],
    excluded: NDArray[np.int64],
    config: LinkConfig,
    key: np.uint64,
) -> Draw:
    """Negatives, edges to learn from where a score learns, and candidates, all by `key`.

    Args:
        asked: [n, 2] pairs (source, target) to rank.
        excluded: [m, 2] pairs (source, candidate) that are no wrong answers.
    """
    learns = "hadamard" in config.scores
    train = graph.edges(config.max_train_edges if learns else 0, key=subkey(key, 0))
    val = val if learns else val[:0]
    order = shuffled(graph.targets.shape[0], seed=int(subkey(key, 1) >> np.uint64(1)), words=())
    return Draw(
        negatives=graph.negatives(positives.shape[0], key=subkey(key, 2)),
        train=train,
        train_negatives=graph.negatives(train.shape[0], key=subkey(key, 3)),
        val=val,
        val_negatives=graph.negatives(val.shape[0], key=subkey(key, 4)),
        asked=questions(asked, candidates=np.sort(graph.targets[order[: config.num_candidates]]), excluded=excluded),
    )
