"""Edges partitioned while they are read: the same CSC as from a spill, whatever the sample of the table said."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from storage.schema import Relation
from storage.stages.crew import Crew
from storage.stages.degrees import count_degrees
from storage.stages.edge_partition import Partition, Ranks, partition_edges
from storage.stages.edge_sort import sorted_ranges
from storage.stages.edge_spill import EDGES_OF_THE_TABLES, open_edge_table, spill_edges
from storage.stages.edge_view import EdgeView, turns, views
from storage.stages.id_map import IdMap
from tests.storage.spills import small_crew

NUM_NODES, NUM_EDGES = 500, 6000
RELATION = Relation("a", "r", "a")
IDS = IdMap(node_type="a", kind="int64", num_nodes=NUM_NODES, ids_are_rows=True, index_bits=1, folder="")


def write_edges(path: Path, target: NDArray[np.int64], *, weights: bool) -> None:
    rng = np.random.default_rng(1)
    columns: dict[str, NDArray[Any]] = {"src": rng.integers(0, NUM_NODES, NUM_EDGES), "dst": target}
    columns |= {"weight": rng.random(NUM_EDGES)} if weights else {}
    pq.write_table(pa.table(columns), path, row_group_size=700)


def read(folder: Path, table: Path, *, undirected: bool, at_once: bool, crew: Crew) -> list[tuple[EdgeView, Partition]]:
    """The table's relations partitioned, while reading or from a spill."""
    folder.mkdir()
    (folder / "spill").mkdir()
    found = spill_edges(
        str(folder / "spill"),
        table=open_edge_table(str(table)),
        relation=RELATION,
        sources=IDS,
        targets=IDS,
        dangling="refuse",
        partition=turns(RELATION, undirected=undirected) if at_once else (),
        known=EDGES_OF_THE_TABLES,
        crew=crew,
    )
    seen = views(RELATION, found.spill, undirected=undirected)
    if at_once:
        return list(zip(seen, found.partitions, strict=True))
    done = []
    for view in seen:
        for name in ("degrees", "runs"):
            (folder / name).mkdir()
        counted = count_degrees(
            str(folder / "degrees"), view=view, num_sources=NUM_NODES, num_targets=NUM_NODES, crew=crew
        )
        runs = str(folder / "runs")
        done.append(
            (view, partition_edges(runs, view=view, ranks=Ranks(None, None), in_degree=counted.in_degree, crew=crew))
        )
    return done


def csc(view: EdgeView, partition: Partition, crew: Crew) -> tuple[list[int], list[int], list[float], int]:
    ranges = list(sorted_ranges(partition, view, crew=crew))
    weights = [float(w) for edges in ranges if edges.weight is not None for w in edges.weight]
    return (
        [int(d) for edges in ranges for d in edges.degrees],
        [int(u) for edges in ranges for u in edges.indices],
        weights,
        sum(edges.num_parallel for edges in ranges),
    )


TARGETS = {
    "even": np.random.default_rng(2).integers(0, NUM_NODES, NUM_EDGES),
    "one hub": np.where(np.random.default_rng(3).random(NUM_EDGES) < 0.7, 17, np.arange(NUM_EDGES) % NUM_NODES),
    "sorted": np.sort(np.random.default_rng(4).integers(0, NUM_NODES, NUM_EDGES)),
    "one target": np.full(NUM_EDGES, NUM_NODES - 1),
}


@pytest.mark.parametrize("undirected", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("shape", TARGETS)
def test_partitioning_while_reading_gives_the_same_csc(
    tmp_path: Path, shape: str, weights: bool, undirected: bool
) -> None:
    write_edges(tmp_path / "edges.parquet", TARGETS[shape], weights=weights)
    crew = small_crew(worker_bytes=1 << 14)
    found = [
        [csc(view, partition, crew) for view, partition in read(
            tmp_path / str(at_once), tmp_path / "edges.parquet", undirected=undirected, at_once=at_once, crew=crew
        )]
        for at_once in (False, True)
    ]  # fmt: skip
    assert found[0] == found[1]
    degrees, indices, _, _ = found[0][0]
    assert sum(degrees) == len(indices)


def test_degrees_of_a_partition_are_those_of_its_spill(tmp_path: Path) -> None:
    write_edges(tmp_path / "edges.parquet", TARGETS["one hub"], weights=False)
    crew = small_crew(worker_bytes=1 << 14)
    counted = []
    for at_once in (False, True):
        folder = tmp_path / str(at_once)
        ((view, partition),) = read(folder, tmp_path / "edges.parquet", undirected=True, at_once=at_once, crew=crew)
        (folder / "counted").mkdir()
        degrees = count_degrees(
            str(folder / "counted"), view=partition if at_once else view, num_sources=NUM_NODES,
            num_targets=NUM_NODES, crew=crew,
        )  # fmt: skip
        counted.append([np.fromfile(path, dtype=np.uint32) for path in (degrees.in_degree, degrees.out_degree)])
    assert all(np.array_equal(a, b) for a, b in zip(*counted, strict=True))
    assert int(counted[0][0].sum()) > NUM_EDGES
