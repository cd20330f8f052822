"""What a pair decoder is given: the products of both ends' states, of pairs with an edge and of pairs that are none.

Shapes: P pairs with an edge (targets), A pairs that are none, K of these a target, S seeds of this rank, D columns of a
state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sampling.batch import MiniBatch
from sampling.masks import edge_keys
from service.group import Group


@dataclass(frozen=True, eq=False)
class PairProducts:
    """Pairs of one batch, of one rank."""

    found: Tensor
    """[P, D]: of targets"""
    found_keys: Tensor
    """int64 [P]: what dropout is keyed by"""
    found_family: Tensor
    """int64 [P]: see `pair_mask.relation_families`"""
    absent: Tensor
    """[A, D]: of pairs that are none"""
    absent_keys: Tensor
    """int64 [A]"""
    absent_family: Tensor
    """int64 [A]"""
    num_into_seed: Tensor
    """int64 [S]: targets into each seed of this rank, those of all ranks together"""


def products_of_seed_edges(h: Tensor, batch: MiniBatch, *, families: tuple[int, ...], group: Group) -> PairProducts:
    """The seed edges of a batch and their negatives.

    An edge from a node to itself is left out with its negatives, for it says nothing of two nodes, and so is a negative
    that is an end of its own edge. States of seeds are gathered, because an end may be a seed of
    another rank: every rank of `group` must call it, and reach the backward pass.

    Args:
        h: [S, D]: states of this rank's seeds, in at least float32.
        families: of every relation (`pair_mask.relation_families`).
    """
    pairs = batch.pairs
    assert pairs is not None, "a batch of seed nodes"
    states, first = group.gather(h)
    chosen = (pairs.source != pairs.target).nonzero().squeeze(1)
    source, target, negative = pairs.source[chosen], pairs.target[chosen], pairs.negative[chosen]
    num_into = group.sum(torch.bincount(target, minlength=states.shape[0]).double())
    keys = edge_keys(torch.full_like(chosen, pairs.relation), pairs.position[chosen])
    family = torch.full_like(chosen, families[pairs.relation])
    edge, number = ((negative != source[:, None]) & (negative != target[:, None])).nonzero(as_tuple=True)
    stays = target if pairs.replaces_source else source
    return PairProducts(
        found=states[source] * states[target],
        found_keys=keys,
        found_family=family,
        absent=states[negative[edge, number]] * states[stays[edge]],
        absent_keys=edge_keys(keys[edge], number),
        absent_family=family[edge],
        num_into_seed=num_into[first : first + batch.num_seeds].long(),
    )
