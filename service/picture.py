"""A picture of the rows: two dimensions of them, a panel for each kind, a colour for each class.

t-SNE (van der Maaten and Hinton, JMLR 2008) keeps who is near whom, distances between groups mean little; PCA is
linear and keeps them. Shapes: N rows, D columns.
"""

import io
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from service.evaluation_report import RowsName, TaskReport, no_scores, scores
from service.evaluation_rows import Rows
from service.probe import normalised, shuffled
from storage.errors import BadInput
from storage.place import Place
from storage.progress import Progress

PICTURE_TAG = 0x91C7
"""a word of the keys of draws, which tells them from those of splits"""
TSNE_INPUT_DIM = 50
"""columns that PCA leaves to t-SNE, as in its paper, section 4.1 (30 there)"""
PERPLEXITY = 30.0
MIN_ROWS = 4
"""fewest rows that have neighbours enough for t-SNE"""
MAX_LEGEND = 20
"""classes named beside the panels; of more, colours repeat and say little"""
PANEL_INCHES = 4.0
DOTS_PER_INCH = 120
Method = Literal["tsne", "pca"]


class PictureConfig(BaseModel):
    """The `evaluation.picture` section of a run file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field("tsne", description="How rows become points of the plane.")
    max_rows: int = Field(
        2000, ge=MIN_ROWS, description="Nodes drawn at most, by the seed; labelled ones where there are."
    )


def plane(x_ND: NDArray[np.float32], *, method: Method, seed: int) -> NDArray[np.float64]:
    """Points [N, 2] of L2-normalised rows, N >= 4; the same seed gives the same points."""
    x_ND = normalised(x_ND)
    num_columns = TSNE_INPUT_DIM if method == "tsne" else 2
    num_columns = min(num_columns, *x_ND.shape)
    # rows that are all alike have no variance to take shares of, which nothing here asks for
    with threadpool_limits(limits=1), np.errstate(invalid="ignore", divide="ignore"):
        x_ND = PCA(num_columns, svd_solver="full").fit_transform(x_ND)
        x_ND = np.pad(x_ND, ((0, 0), (0, max(0, 2 - num_columns))))
        if method == "tsne":
            # the first two principal axes are the start, scaled as scikit-learn scales them, so runs are alike
            start = x_ND[:, :2] / max(float(np.std(x_ND[:, 0])), 1e-12) * 1e-4
            perplexity = min(PERPLEXITY, (x_ND.shape[0] - 1) / 3)
            model = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed, n_jobs=1)
            x_ND = model.fit_transform(x_ND)
    return np.asarray(x_ND[:, :2], dtype=np.float64)


def draw(panels: Mapping[str, NDArray[np.float64]], *, labels: NDArray[np.int64], title: str) -> bytes:
    """A PNG with one panel of points [N, 2] for each entry; labels int64 [N], -1 unknown and grey."""
    # drawn without pyplot, which keeps figures and a backend for the whole process
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = matplotlib.colormaps["tab20"]
    classes = np.unique(labels[labels >= 0])
    figure = Figure(figsize=(PANEL_INCHES * len(panels) + 1.0, PANEL_INCHES + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    size = float(np.clip(4000.0 / max(1, labels.shape[0]), 2.0, 20.0))
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        unknown = labels < 0
        axis.scatter(points[unknown, 0], points[unknown, 1], s=size, color="0.6", linewidths=0)
        for number, label in enumerate(classes):
            members = labels == label
            axis.scatter(
                points[members, 0],
                points[members, 1],
                s=size,
                color=colours(number % colours.N),
                linewidths=0,
                label=str(label),
            )
        axis.set(title=name, xticks=[], yticks=[])
    if 0 < classes.shape[0] <= MAX_LEGEND:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", markerscale=3.0, title="class")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return out.getvalue()


class PictureTask:
    """A picture of one node type.

    Args:
        node_type, name: the type.
        labels: int64 [num_nodes], -1 unknown.
        ids: dense ids of the nodes that may be drawn.
        out: folder of pictures.

    Raises BadInput for fewer than four nodes.
    """

    def __init__(
        self,
        node_type: int,
        *,
        name: str,
        labels: NDArray[np.int64],
        ids: NDArray[np.int64],
        config: PictureConfig,
        seed: int,
        out: Place,
    ) -> None:
        if ids.shape[0] < MIN_ROWS:
            raise BadInput(
                f"evaluation.tasks, node type {name}",
                f"{ids.shape[0]} nodes to draw",
                rule=f"a picture takes {MIN_ROWS} nodes at least",
                remedy="leave the task picture out, or choose another type by evaluation.node_type",
            )
        order = shuffled(ids.shape[0], seed=seed, words=(PICTURE_TAG, node_type))
        self._rows = np.sort(ids[order[: config.max_rows]])
        self._labels = labels[self._rows]
        self._num_available = ids.shape[0]
        self._type = node_type
        self._name = name
        self._config = config
        self._seed = seed
        self._out = out
        self._panels: dict[str, NDArray[np.float64]] = {}
        self._results = list[tuple[RowsName, int, float]]()
        self._missing = list[tuple[RowsName, str]]()

    @property
    def wanted(self) -> Mapping[int, NDArray[np.int64]]:
        """The nodes drawn."""
        return {self._type: self._rows}

    def score(self, rows: Rows, progress: Progress) -> None:
        """Keep the points of one kind of rows."""
        began = time.monotonic()
        progress.stage(f"picture {self._name}, {rows.name}", total=1, unit="pictures")
        x_ND = rows.of(self._type, self._rows)
        self._panels[rows.name] = plane(x_ND, method=self._config.method, seed=self._seed)
        self._results.append((rows.name, x_ND.shape[1], rows.seconds + time.monotonic() - began))
        progress.advance(1)

    def leave_out(self, name: RowsName, *, note: str) -> None:
        """Say why there is no panel of a kind of rows."""
        self._missing.append((name, note))

    def report(self) -> TaskReport:
        """Draw and write the picture, and say where it is."""
        method = {"tsne": "t-SNE", "pca": "PCA"}[self._config.method]
        title = f"{self._name}: {method} of {self._rows.shape[0]:,} nodes"
        titles = {"random_init": "random init", "sgc": "SGC"}
        panels = {titles.get(name, name): points for name, points in self._panels.items()}
        name = f"{self._name}.png"
        self._out.write_bytes(name, draw(panels, labels=self._labels, title=title))
        drawn = [scores(name, dim=dim, figures={}, seconds=seconds) for name, dim, seconds in self._results]
        return TaskReport(
            task="picture",
            of=self._name,
            settings={
                "method": self._config.method,
                "rows": self._rows.shape[0],
                "rows_available": self._num_available,
                "file": self._out.full(name),
            },
            results=(*drawn, *(no_scores(name, note=note) for name, note in self._missing)),
        )
