"""Every mode through the loader: the same batches for any number of threads, after a resume, and on every rank."""

import numpy as np
import pytest
import torch

from sampling.batch import MiniBatch
from sampling.loader import Loader
from sampling.modes import ModeName, SamplingMode
from sampling.seeds import SeedOrder
from storage.features import Features
from tests.sampling.graphs import dressed, two_type_graph
from tests.sampling.tables import ArrayTable

MODES: tuple[ModeName, ...] = ("uniform", "weighted", "temporal-uniform", "temporal-latest", "labor", "ppr")


def batches(
    mode: ModeName, *, first: int = 0, last: int = 9, num_threads: int = 1, rank: int = 0, world_size: int = 1
) -> list[MiniBatch]:
    rng = np.random.default_rng(1)
    tables: list[Features | None] = [ArrayTable(rng.random((120, 5)).astype(np.float32)), None]
    loader = Loader(
        dressed(two_type_graph()),
        order=SeedOrder(None, num_nodes=200, seeds_per_step=48, seed=4),
        fanouts=(3, {"t0:a:t1": 2, "t1:b:t0": 1}),
        seed=4,
        mode=SamplingMode(mode, batch_dependency=4, node_times=rng.integers(0, 60, 200)),
        features=tables,
        rank=rank,
        world_size=world_size,
        num_threads=num_threads,
    )
    try:
        return list(loader.batches(first_step=first, last_step=last))
    finally:
        loader.close()


def seed_edges(batch: MiniBatch) -> list[list[tuple[int, list[int], list[float]]]]:
    """Per seed: relation, positions and features' sums of its drawn in-neighbours, whatever their rows."""
    hop = batch.hops[0]
    table = batch.features[0]
    assert table is not None
    sums = torch.zeros(batch.node_id.shape[0])
    sums[batch.node_type == 0] = table.sum(dim=1)
    found = []
    for row in range(batch.num_seeds):
        of_row = []
        for relation in range(hop.indptr.shape[0]):
            edges = slice(int(hop.indptr[relation, row]), int(hop.indptr[relation, row + 1]))
            of_row.append((relation, hop.position[edges].tolist(), sums[hop.source[edges].long()].tolist()))
        found.append(of_row)
    return found


def assert_same(left: MiniBatch, right: MiniBatch) -> None:
    assert (left.epoch, left.step) == (right.epoch, right.step)
    assert torch.equal(left.node_id, right.node_id)
    assert torch.equal(left.node_type, right.node_type)
    for mine, theirs in zip(left.hops, right.hops, strict=True):
        assert torch.equal(mine.indptr, theirs.indptr)
        assert torch.equal(mine.source, theirs.source)
        assert torch.equal(mine.position, theirs.position)


@pytest.mark.parametrize("mode", MODES)
def test_threads_resumes_and_ranks_change_no_batch(mode: ModeName) -> None:
    whole = batches(mode)
    for other in (batches(mode, num_threads=3), batches(mode, last=4) + batches(mode, first=4)):
        assert len(other) == len(whole)
        for left, right in zip(whole, other, strict=True):
            assert_same(left, right)
    shares = [batches(mode, rank=rank, world_size=3) for rank in range(3)]
    for number, batch in enumerate(whole):
        together = [edges for share in shares for edges in seed_edges(share[number])]
        assert together == seed_edges(batch)
