"""What the laws of ranks compare: the loss and every gradient and buffer of a rank, with those of one rank alone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sampling.batch import MiniBatch
from service.group import Group
from service.model import Model
from service.objectives import LossSum
from tests.laws.gloo_ranks import left_by
from tests.service.batches import SmallGraph, make_batch


def dealt_batches(
    graph: SmallGraph, counts: Sequence[Sequence[int]], *, rank: int, num_hops: int
) -> Iterator[MiniBatch]:
    """A rank's share of one global batch after another, of seeds in a drawn order.

    Args:
        counts: seeds of each rank in each batch.
    """
    order = torch.randperm(sum(graph.num_nodes), generator=torch.Generator().manual_seed(1)).tolist()
    first = 0
    for step, of_ranks in enumerate(counts):
        mine = first + sum(of_ranks[:rank])
        seeds = [graph.all_seeds()[number] for number in order[mine : mine + of_ranks[rank]]]
        batch = make_batch(graph, seeds, num_hops=num_hops, fanout=2, num_seeds_global=sum(of_ranks))
        yield replace(batch, step=step)
        first += sum(of_ranks)


def backward_over_ranks(out: LossSum, *, group: Group) -> dict[str, Tensor]:
    """Loss and count over all ranks, behind a backward pass that divides by the count, as the step does."""
    sums = group.sum(torch.stack([out.loss_sum.detach().double(), out.count]))
    (out.loss_sum * (group.world_size / sums[1].item())).backward()
    return {"loss": sums[0], "count": sums[1]}


def gradients_and_buffers(model: Model) -> dict[str, Tensor]:
    """By name; parameters out of training count as buffers."""
    result: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            result[f"gradient {name}"] = parameter.grad
        else:
            result[f"buffer {name}"] = parameter
    return result | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


def assert_ranks_equal(
    alone: Mapping[str, Tensor],
    *,
    folder: Path,
    number: int,
    world_size: int,
    named: str,
    tolerance: float,
    dtype: torch.dtype,
) -> None:
    """Every rank has left, as case `number`, what one rank alone has."""
    for rank in range(world_size):
        together = left_by(folder=folder, name=number, rank=rank)
        assert together.keys() == alone.keys()
        assert together["count"] == alone["count"]
        for kind in ("loss", "gradient", "buffer"):
            expected = {name: value.double() for name, value in alone.items() if name.startswith(kind)}
            # the gradient of a bias before a batch norm is 0 but for the rounding of the others
            rounding = 4.0 * torch.finfo(dtype).eps * norm_of(expected.values())
            for name, value in expected.items():
                difference = float((together[name].double() - value).norm())
                allowed = tolerance * float(value.norm()) + rounding
                assert difference <= allowed, f"{named}: {name} on rank {rank}: {difference} > {allowed}"


def norm_of(tensors: Iterable[Tensor]) -> float:
    """Of all entries together."""
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))
