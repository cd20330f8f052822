"""The picture: points that keep what was near, a PNG, and the same bytes for the same rows."""

import io

import numpy as np
import pytest
from PIL import Image

from service.evaluation_rows import Rows
from service.picture import Method, PictureConfig, PictureTask, draw, plane
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress


def groups(num_rows: int = 60, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(num_rows) % 3
    return (np.eye(3, dim)[labels] + 0.05 * rng.normal(size=(num_rows, dim))).astype(np.float32), labels


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_groups_stay_groups_and_the_same_seed_gives_the_same_points(method: Method) -> None:
    rows, labels = groups()
    points = plane(rows, method=method, seed=1)
    assert points.shape == (60, 2)
    assert np.isfinite(points).all()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert np.array_equal(points, plane(rows, method=method, seed=1))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_four_rows_of_one_column_have_points_too(method: Method) -> None:
    assert plane(np.ones((4, 1), np.float32), method=method, seed=0).shape == (4, 2)


def test_a_png_has_a_panel_for_each_kind_of_rows() -> None:
    rows, labels = groups()
    points = plane(rows, method="pca", seed=0)
    labels[0] = -1
    one, two = (draw(dict.fromkeys(names, points), labels=labels, title="t") for names in (["a"], ["a", "b"]))
    sizes = [Image.open(io.BytesIO(png)).size for png in (one, two)]
    assert sizes[1][0] - sizes[0][0] == 480
    assert sizes[0][1] == sizes[1][1]
    assert one == draw({"a": points}, labels=labels, title="t")


def test_the_task_writes_one_picture_of_the_rows_that_exist(tmp_path: object) -> None:
    rows, labels = groups()
    task = PictureTask(
        0, name="node", labels=labels, ids=np.arange(60), config=PictureConfig(method="pca", max_rows=20), seed=0,
        out=Place(str(tmp_path)),
    )  # fmt: skip
    assert len(task.wanted[0]) == 20
    task.score(Rows(name="trained", ids=[np.arange(60)], x=[rows], seconds=0.0), NoProgress())
    task.leave_out("raw", note="node type node has no features")
    report = task.report()
    assert report.settings["file"] == f"{tmp_path}/node.png"
    assert Image.open(f"{tmp_path}/node.png").format == "PNG"
    assert [(result.rows, result.dim) for result in report.results] == [("trained", 8), ("raw", None)]


def test_too_few_nodes_are_refused(tmp_path: object) -> None:
    with pytest.raises(BadInput, match="3 nodes to draw"):
        PictureTask(
            0, name="node", labels=np.zeros(3, np.int64), ids=np.arange(3), config=PictureConfig(), seed=0,
            out=Place(str(tmp_path)),
        )  # fmt: skip
