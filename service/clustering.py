"""Clustering: how far groups found without labels are the classes.

k-means on L2-normalised rows with as many clusters as classes, once a seed; normalised mutual information (arithmetic
mean of the entropies) and adjusted Rand index against the labels. Labels are looked at for the comparison only.
The protocol is PyAGC's: k the number of classes, mean over seeds. Shapes: N rows, D columns.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits

from sampling.keys import subkey
from service.evaluation_rows import Rows
from service.evaluation_task import FigureTask
from service.labelled_rows import LabelledType
from service.probe import normalised, one_blas_thread, shuffled
from storage.errors import BadInput
from storage.progress import Progress

CLUSTERING_TAG = 0xC105
"""a word of the keys of draws, which tells them from those of splits"""


class ClusteringConfig(BaseModel):
    """The `evaluation.clustering` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_clusters: int | None = Field(None, ge=2, description="Clusters; unset for the number of classes.")
    num_seeds: int = Field(5, ge=1, description="Runs of k-means that mean and deviation are over.")
    num_starts: int = Field(10, ge=1, description="Starts of k-means in a run, of which the tightest counts.")
    max_rows: int = Field(20_000, ge=2, description="Labelled nodes clustered at most, drawn by the seed.")


def clusters(x_ND: NDArray[np.float32], *, num_clusters: int, num_starts: int, seed: int) -> NDArray[np.int64]:
    """The cluster, int64 [N], of each row by k-means on normalised rows, from k-means++ starts."""
    # on one thread sums are taken in one order, whatever the number of cores
    with one_blas_thread(), threadpool_limits(limits=1):
        model = KMeans(num_clusters, n_init=num_starts, random_state=seed).fit(normalised(x_ND))
    return np.asarray(model.labels_, dtype=np.int64)


class ClusteringTask(FigureTask):
    """Clustering of one node type's labelled nodes, whichever split they are in."""

    def __init__(self, kind: LabelledType, *, config: ClusteringConfig, seed: int) -> None:
        labelled = np.flatnonzero(kind.labels >= 0)
        order = shuffled(labelled.shape[0], seed=seed, words=(CLUSTERING_TAG, kind.index))
        self._rows = np.sort(labelled[order[: config.max_rows]])
        self._labels = kind.labels[self._rows]
        self._num_clusters = config.num_clusters or np.unique(self._labels).shape[0]
        if self._num_clusters > self._rows.shape[0]:
            raise BadInput(
                f"evaluation.clustering, node type {kind.name}",
                f"{self._num_clusters} clusters of {self._rows.shape[0]} rows",
                rule="there are no more clusters than rows",
                remedy="lower evaluation.clustering.num_clusters, or raise evaluation.clustering.max_rows",
            )
        super().__init__(
            "clustering",
            of=kind.name,
            settings={
                "clusters": self._num_clusters,
                "rows": self._rows.shape[0],
                "rows_available": labelled.shape[0],
                "seeds": config.num_seeds,
                "starts": config.num_starts,
            },
        )
        self._kind = kind
        self._config = config
        self._seed = seed

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """The labelled nodes."""
        return {self._kind.index: self._rows}

    @property
    def num_rounds(self) -> int:
        """One a seed."""
        return self._config.num_seeds

    def figures(self, rows: Rows, progress: Progress) -> Mapping[str, Sequence[float]]:
        """NMI and ARI of each seed, at most 1."""
        x_ND = rows.of(self._kind.index, self._rows)
        found: dict[str, list[float]] = {"nmi": [], "ari": []}
        for number in range(self._config.num_seeds):
            seed = int(subkey(np.uint64(CLUSTERING_TAG), self._seed, number) >> np.uint64(32))
            groups = clusters(x_ND, num_clusters=self._num_clusters, num_starts=self._config.num_starts, seed=seed)
            found["nmi"].append(float(normalized_mutual_info_score(self._labels, groups)))
            found["ari"].append(float(adjusted_rand_score(self._labels, groups)))
            progress.advance(1)
        return found
