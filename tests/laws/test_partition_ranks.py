"""Law: W ranks learn the same partition as one, which one of them finds, and its loss and gradient are those of one.

The test starts its own gloo processes (this file run as a program).
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from service.group import Group
from service.model import Model, build_model
from service.noise import Noise
from service.objectives.partition_task import PartitionTask
from service.partition_file import give_partition
from service.run_file import RunFile, parse_run_text
from service.schema import GraphSchema
from storage.progress import NoProgress
from storage.store import Store
from tests.laws.gloo_ranks import joined_rank, leave, left_by, run_ranks
from tests.service.batches import homogeneous, make_batch
from tests.service.stores import ingested

WORLD_SIZE = 2
COUNTS = {1: (25,), 2: (18, 7)}
"""seeds of each rank, by world size"""


def run_of(folder: Path, *, name: str) -> RunFile:
    return parse_run_text(
        f"""
        run: {{name: {name}, storage: {folder}/runs}}
        data: {{store: {folder}/store}}
        encoder: {{name: gcn, hidden_dim: 8, norm: batch, feature_dropout: 0.2, edge_dropout: 0.2, kernels: torch}}
        objective: {{name: pretext, tasks: [partition, degree], num_parts: 4}}
        """,
        place="run.yaml",
    )


class Stages(NoProgress):
    """Counts the stages of finding a partition."""

    def __init__(self) -> None:
        self.count = 0

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.count += name.startswith("partition")


def found_by(folder: Path, *, name: str, group: Group, process_group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """Parts, loss and gradient of this rank; how many stages it worked on the partition."""
    graph, store, stages = homogeneous(), Store.open(f"{folder}/store"), Stages()
    run = run_of(folder, name=name)
    model: Model = build_model(run, GraphSchema.from_store(store), group=group).double()
    give_partition(model, run, store=store, group=group, progress=stages)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist()
    counts = COUNTS[group.world_size]
    first = sum(counts[: group.rank])
    seeds = [graph.all_seeds()[number] for number in order[first : first + counts[group.rank]]]
    forward: nn.Module = model
    if group.world_size > 1:
        forward = DistributedDataParallel(model, broadcast_buffers=False, process_group=process_group)
    out = forward(make_batch(graph, seeds, num_hops=2, num_seeds_global=25), Noise(3))
    sums = group.sum(torch.stack([out.loss_sum.detach(), out.count]))
    (out.loss_sum * (group.world_size / sums[1].item())).backward()
    (task,) = (module for module in model.modules() if isinstance(module, PartitionTask))
    assert task.parts is not None
    result = {"loss": sums[0], "parts": task.parts.part, "stages": torch.tensor(stages.count)}
    for number, parameter in enumerate(model.parameters()):
        assert parameter.grad is not None
        result[f"gradient {number}"] = parameter.grad
    return result


def test_ranks_equal_one_rank_and_one_of_them_finds_the_partition(tmp_path: Path) -> None:
    ingested(homogeneous(), tmp_path)
    alone = found_by(tmp_path, name="alone", group=Group(), process_group=None)
    assert 1 < len(set(alone["parts"].tolist()) - {-1}) <= 4
    assert alone["stages"] > 0
    run_ranks("tests.laws.test_partition_ranks", world_size=WORLD_SIZE, folder=tmp_path)
    for rank in range(WORLD_SIZE):
        found = left_by(folder=tmp_path, name="together", rank=rank)
        assert found.keys() == alone.keys()
        assert torch.equal(found["parts"], alone["parts"])
        assert bool(found["stages"] > 0) == (rank == 0)
        for name in alone.keys() - {"parts", "stages"}:
            assert torch.allclose(found[name], alone[name], rtol=1e-9, atol=1e-12), name


if __name__ == "__main__":
    with joined_rank(sys.argv) as (joined, where):
        tensors = found_by(where, name="together", group=joined, process_group=dist.group.WORLD)
        leave(tensors, folder=where, name="together", rank=joined.rank)
