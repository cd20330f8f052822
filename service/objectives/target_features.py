"""What the seeds' features are predicted as: unit rows of raw features, or of their mean over sampled neighbourhoods.

Shapes: N_t nodes of the batch of type t, S_t seeds of it, F_t columns.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from sampling.batch import Hop, MiniBatch
from service.schema import GraphSchema


def target_features(
    batch: MiniBatch, kind: int, *, schema: GraphSchema, num_averages: int, dtype: torch.dtype
) -> Tensor:
    """[S_t, F_t]: rows of the seeds of type `kind`, in batch order, of length 1; a row of zeros stays one.

    Args:
        num_averages: times that each node's row becomes the mean of its own and of those of its sampled neighbours of
            the same type (Wu et al., "Simplifying graph convolutional networks", ICML 2019, with a mean for the sum);
            at most the hops of the batch.
    """
    table = batch.features[kind]
    assert table is not None
    is_kind = batch.node_type == kind
    if num_averages == 0:
        return normalize(table[: int(is_kind[: batch.num_seeds].sum())].to(dtype))
    # embedding_bag wants one type for all its arguments, and has no kernel for integers
    rows = table.to(dtype)
    place = is_kind.cumsum(0) - 1
    for hop in batch.hops[:num_averages][::-1]:
        rows = _averaged(rows, hop, is_kind=is_kind, place=place, kind=kind, schema=schema)
    return normalize(rows[: int(is_kind[: batch.num_seeds].sum())])


def _averaged(rows: Tensor, hop: Hop, *, is_kind: Tensor, place: Tensor, kind: int, schema: GraphSchema) -> Tensor:
    """The mean of each target's row and of its neighbours', over all relations from the type to itself."""
    targets = is_kind[: hop.num_targets].nonzero().squeeze(1)
    total = rows[: targets.shape[0]]
    count = torch.ones(targets.shape[0], dtype=rows.dtype, device=rows.device)
    for number, relation in enumerate(schema.relations):
        if relation.source_type != kind or relation.target_type != kind:
            continue
        first, last = int(hop.indptr[number, 0]), int(hop.indptr[number, -1])
        if first == last:
            continue
        # rows of other types have no edges under this relation, so the chosen rows' edges still stand in one piece
        starts = hop.indptr[number, targets].long() - first
        sources = place[hop.source[first:last].long()]
        ends = torch.cat([starts, starts.new_tensor([last - first])])
        total = total + embedding_bag(sources, rows, ends, mode="sum", include_last_offset=True)
        count = count + (ends[1:] - ends[:-1]).to(rows.dtype)
    return total / count[:, None]
