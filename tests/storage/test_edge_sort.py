"""Sorted ranges of edges against a plain sort of tuples."""

from pathlib import Path

import numpy as np
import pytest

from storage.schema import Relation
from storage.segments import SortedEdges
from storage.stages.degrees import count_degrees
from storage.stages.edge_partition import Ranks, partition_edges
from storage.stages.edge_sort import sorted_ranges
from storage.stages.edge_view import EdgeView, views
from tests.storage.spills import small_crew, write_spill

NUM_SOURCES, NUM_TARGETS, NUM_EDGES = 300, 70, 4000


def random_view(folder: Path, *, weights: bool, times: bool, num_sources: int = NUM_SOURCES) -> EdgeView:
    rng = np.random.default_rng(7)
    spill = write_spill(
        folder,
        np.minimum(*rng.integers(0, num_sources, (2, NUM_EDGES))),
        np.minimum(*rng.integers(0, NUM_TARGETS, (2, NUM_EDGES))),
        weight=rng.random(NUM_EDGES) if weights else None,
        timestamp=rng.integers(-3, 3, NUM_EDGES) if times else None,
    )
    same = num_sources == NUM_TARGETS
    return views(Relation("a", "r", "a" if same else "b"), spill, undirected=same)[0]


def sort(view: EdgeView, folder: Path, ranks: Ranks, *, num_sources: int = NUM_SOURCES) -> list[SortedEdges]:
    crew = small_crew(worker_bytes=1 << 14)  # ranges of a few hundred edges
    (folder / "degrees").mkdir()
    degrees = count_degrees(
        str(folder / "degrees"), view=view, num_sources=num_sources, num_targets=NUM_TARGETS, crew=crew
    )
    (folder / "runs").mkdir()
    partition = partition_edges(str(folder / "runs"), view=view, ranks=ranks, in_degree=degrees.in_degree, crew=crew)
    assert len(partition.bounds) > 4
    assert len(partition.runs) > 4
    return list(sorted_ranges(partition, view, crew=crew))


def columns(view: EdgeView) -> tuple[list[int], list[int], list[int], list[float]]:
    """The view's edges in order, read with NumPy alone."""
    parts = [part.path for part in view.spill.parts]
    source, target = (
        np.concatenate([np.fromfile(f"{path}.{name}", dtype=np.uint32) for path in parts]).tolist()
        for name in ("source", "target")
    )
    time = [0] * len(source)
    weight = [0.0] * len(source)
    if view.spill.has_timestamp:
        time = np.concatenate([np.fromfile(f"{path}.timestamp", dtype=np.int64) for path in parts]).tolist()
    if view.spill.has_weight:
        weight = np.concatenate([np.fromfile(f"{path}.weight", dtype=np.float32) for path in parts]).tolist()
    return source, target, time, weight


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("ranked", [False, True])
def test_every_range_equals_a_sort_of_tuples(tmp_path: Path, weights: bool, times: bool, ranked: bool) -> None:
    view = random_view(tmp_path / "spill", weights=weights, times=times)
    rng = np.random.default_rng(8)
    source_rank = rng.permutation(NUM_SOURCES) if ranked else np.arange(NUM_SOURCES)
    target_rank = rng.permutation(NUM_TARGETS) if ranked else np.arange(NUM_TARGETS)
    source_rank.astype(np.uint32).tofile(tmp_path / "source")
    target_rank.astype(np.uint32).tofile(tmp_path / "target")
    ranks = Ranks(str(tmp_path / "source"), str(tmp_path / "target")) if ranked else Ranks(None, None)
    found = sort(view, tmp_path, ranks)
    rows = sorted(
        (int(target_rank[v]), time, int(source_rank[u]), position, weight)
        for position, (u, v, time, weight) in enumerate(zip(*columns(view), strict=True))
    )
    assert [u for edges in found for u in edges.indices] == [row[2] for row in rows]
    degrees = [int(d) for edges in found for d in edges.degrees]
    assert degrees == [sum(row[0] == v for row in rows) for v in range(NUM_TARGETS)]
    if weights:
        assert [w for edges in found if edges.weight is not None for w in edges.weight] == [row[4] for row in rows]
    if times:
        assert [t for edges in found if edges.timestamp is not None for t in edges.timestamp] == [r[1] for r in rows]
    assert all((edges.weight is None, edges.timestamp is None) == (not weights, not times) for edges in found)
    pairs = {(row[0], row[2]) for row in rows}
    assert sum(edges.num_parallel for edges in found) == len(rows) - len(pairs)


def test_a_symmetric_view_holds_each_edge_and_its_reverse_at_one_position(tmp_path: Path) -> None:
    view = random_view(tmp_path / "spill", weights=True, times=True, num_sources=NUM_TARGETS)
    wanted = list[tuple[int, int, int, float]]()
    for u, v, time, weight in zip(*columns(view), strict=True):
        wanted += [(u, v, time, weight)] if u == v else [(u, v, time, weight), (v, u, time, weight)]
    found = list[tuple[int, int, int, float]]()
    for piece in view.slices(max_edges=77):
        edges = view.read(piece)
        assert edges.timestamp is not None
        assert edges.weight is not None
        parts = (edges.source, edges.target, edges.timestamp, edges.weight)
        found += zip(*(part.tolist() for part in parts), strict=True)
    assert found == wanted
    assert view.num_edges == len(wanted)
    assert view.reverse_of == view.relation


def test_a_table_between_types_becomes_two_relations_that_name_each_other(tmp_path: Path) -> None:
    spill = random_view(tmp_path, weights=True, times=False).spill
    there, back = views(Relation("a", "r", "b"), spill, undirected=True)
    assert back.relation == Relation("b", "rev_r", "a")
    assert (there.reverse_of, back.reverse_of) == (back.relation, there.relation)
    piece = there.slices(max_edges=100)[1]
    assert np.array_equal(there.read(piece).source, back.read(piece).target)
    assert np.array_equal(there.read(piece).target, back.read(piece).source)
