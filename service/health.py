"""Health of representations: figures that show a collapse, from the seeds' states that a step has computed anyway.

Shapes: S seeds of the global batch, D hidden columns, P pairs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sampling.batch import Hop, MiniBatch
from service.group import Group

MAX_ROWS = 1024
"""seeds looked at: the first of the global batch; pairs of these cost about as much as one layer's product"""


@dataclass(frozen=True)
class Health:
    """Figures of one global batch; None where they are not defined."""

    std_mean: float | None = None
    std_min: float | None = None
    effective_rank: float | None = None
    alignment: float | None = None
    uniformity: float | None = None


class SeedStates:
    """Listens to an encoder during one forward pass and keeps what its first call puts out, of views the first two.

    Args:
        views: the objective's `first_passes_are_views`; without, alignment is over linked nodes.
    """

    def __init__(self, *, views: bool = False) -> None:
        self._num_passes = 2 if views else 1
        self._passes: list[Tensor] = []
        self._batch: MiniBatch | None = None

    @contextmanager
    def listening(self, encoder: nn.Module, batch: MiniBatch) -> Iterator[None]:
        """Keep the states of `encoder`'s calls for `batch` inside the block."""

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if (
                len(self._passes) < self._num_passes
                and isinstance(output, Tensor)
                and output.shape[0] >= batch.num_seeds
            ):
                self._passes.append(output.detach())

        self._passes, self._batch = [], batch
        hook = encoder.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def figures(self, group: Group) -> Health:
        """Health of the global batch, on rank 0; every rank of `group` must call it. What was kept is let go."""
        passes, batch = self._passes, self._batch
        self._passes, self._batch = [], None
        if not passes or batch is None:
            return Health()
        counts = group.gather_rows(torch.tensor([batch.num_seeds], device=passes[0].device)).tolist()
        own = min(batch.num_seeds, max(0, MAX_ROWS - sum(counts[: group.rank])))  # of the rows that are looked at
        seeds_SD = [group.gather_rows(states[:own].float()).double() for states in passes]
        # an encoder without neighbours may have a batch without a hop: then there are no linked pairs
        sums = torch.zeros(2, dtype=torch.float64, device=passes[0].device)
        if len(passes) == 1:
            sums = group.sum(linked_distances(passes[0], batch.hops[0]) if batch.hops else sums)
        if group.rank != 0:
            return Health()
        if len(passes) == 2:
            pairs = (normalize(seeds_SD[0]) - normalize(seeds_SD[1])).square().sum(1)
            sums = torch.stack([pairs.sum(), pairs.new_tensor(float(pairs.shape[0]))])
        distance, count = sums.tolist()
        return Health(
            *spread(seeds_SD[0]),
            effective_rank=effective_rank(seeds_SD[0]),
            alignment=distance / count if count > 0 else None,
            uniformity=uniformity(seeds_SD[0]),
        )


def linked_distances(states: Tensor, hop: Hop) -> Tensor:
    """float64 [sum of squared distances between normalised states of linked nodes, number of these pairs].

    Pairs are the sampled edges into seeds, where the encoder put out the state of every source too; none otherwise, as
    the pairs among seeds would depend on how these are spread over ranks.
    """
    if states.shape[0] < hop.num_sources or hop.source.numel() == 0:
        return torch.zeros(2, dtype=torch.float64, device=states.device)
    rows = torch.arange(hop.num_targets, device=states.device).repeat(hop.indptr.shape[0])
    target = rows.repeat_interleave((hop.indptr[:, 1:] - hop.indptr[:, :-1]).reshape(-1).long())
    source = hop.source.long()
    pairs = target != source
    z = normalize(states[: hop.num_sources].double())
    distances = (z[source[pairs]] - z[target[pairs]]).square().sum(1)
    return torch.stack([distances.sum(), distances.new_tensor(float(distances.shape[0]))])


def spread(z_SD: Tensor) -> tuple[float | None, float | None]:
    """Mean and minimum over columns of the standard deviation over rows of length sqrt(D); 0 is collapse, 1 healthy.

    Source: Chen and He, "Exploring simple siamese representation learning", CVPR 2021, section 4.1 (there of rows of
    length 1, healthy at 1/sqrt(D)). None with fewer than two rows.
    """
    if z_SD.shape[0] < 2:
        return None, None
    deviation = normalize(z_SD).std(0, correction=0) * math.sqrt(z_SD.shape[1])
    return _finite(deviation.mean()), _finite(deviation.min())


def effective_rank(z_SD: Tensor) -> float | None:
    """Exp of the entropy of the singular values over their sum, in [1, min(S, D)]; None without any that is not 0.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, definition 1.
    """
    if z_SD.numel() == 0:
        return None
    gram = z_SD @ z_SD.T if z_SD.shape[0] < z_SD.shape[1] else z_SD.T @ z_SD
    if not bool(torch.isfinite(gram).all()):
        return None
    values = torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt()
    # what is below the rounding of the largest eigenvalue is no direction
    values = values[values > values.max() * math.sqrt(torch.finfo(gram.dtype).eps * gram.shape[0])]
    if values.numel() == 0:
        return None
    share = values / values.sum()
    return _finite(torch.exp(-(share * share.log()).sum()))


def uniformity(z_SD: Tensor) -> float | None:
    """Log of the mean over pairs of rows of exp(-2 |z_i - z_j|^2), normalised: 0 is collapse; None without a pair.

    Source: Wang and Isola, "Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere", ICML 2020, section 4.1.2; alignment is their equation 4.1.1 with exponent 2.
    """
    if z_SD.shape[0] < 2:
        return None
    unit_SD = normalize(z_SD)
    squares_S = unit_SD.square().sum(1)
    # float64: |a - b|^2 as a product of matrices is exact enough, and ten times as fast as pair by pair
    distances_SS = (squares_S[:, None] + squares_S - 2.0 * unit_SD @ unit_SD.T).fill_diagonal_(math.inf)
    num_pairs = z_SD.shape[0] * (z_SD.shape[0] - 1)
    return _finite((torch.exp(-2.0 * distances_SS).sum() / num_pairs).log())


def collapse_warning(health: Health, *, min_std: float, min_rank: float) -> str | None:
    """What is wrong with `health`; None when nothing is."""
    found = []
    if health.std_mean is not None and health.std_mean < min_std:
        found.append(f"the standard deviation of a column is {health.std_mean:.3g} on average, below {min_std:g}")
    if health.effective_rank is not None and health.effective_rank < min_rank:
        found.append(f"the effective rank is {health.effective_rank:.3g}, below {min_rank:g}")
    return f"representations collapse: {'; '.join(found)}" if found else None


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
