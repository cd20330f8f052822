"""Masked edges: hide node pairs of a batch from the encoder and tell them from pairs that are none.

Or link prediction: where the seeds of a step are edges, tell these, which no block holds, from their negatives.

Shapes: N nodes of the batch, S seeds, P target edges into them, n nodes within the objective's one hop, D columns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import softplus

from sampling.batch import MiniBatch
from sampling.masks import edge_keys
from service.encoders import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise, Site
from service.objectives.base import LossSum, Objective
from service.objectives.gathered_seeds import GatheredSeeds, check_sources_are_seeds
from service.objectives.heads import Head
from service.objectives.latent import LatentHeads
from service.objectives.pair_decoders import DecoderName, make_pair_decoder
from service.objectives.pair_mask import MaskedBatch, mask_pairs, relation_families
from service.objectives.pair_products import PairProducts, products_of_seed_edges
from service.objectives.seeds import full_precision
from service.schema import GraphSchema
from storage.errors import BadInput


class EdgeMaskConfig(BaseModel):
    """The `objective` section of a run file for edgemask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["edgemask"] = Field("edgemask", description="masked edges: MaskGAE; GAE and VGAE as settings")
    targets: Literal["hidden", "seeds"] = Field(
        "hidden",
        description="what is predicted; hidden: edges into seed nodes, of the pairs that mask_rate hides; seeds: the "
        "seeds of a step are edges of sampling.seed_relation, with sampling.num_negatives negatives each; no block "
        "holds them or their reverses, and mask_rate has no meaning",
    )
    mask_rate: float = Field(
        0.7,
        ge=0.0,
        le=1.0,
        description="share of the node pairs whose edges are hidden and predicted; 0 hides none and predicts all (GAE)",
    )
    decoder: DecoderName = Field("mlp", description="mlp on the product of both states, or their dot product")
    decoder_dim: int = Field(64, ge=1, description="hidden columns of the mlp decoder and of the degree head")
    decoder_dropout: float = Field(0.2, ge=0.0, lt=1.0, description="share of the product's entries zeroed")
    degree_weight: float = Field(
        0.002, ge=0.0, description="of the squared error of a seed's number of predicted edges; 0 leaves it out"
    )
    kl_weight: float = Field(
        0.0, ge=0.0, description="above 0 states become normal distributions (VGAE); weight of their divergence"
    )
    latent_dim: int = Field(64, ge=1, description="columns of these distributions")

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's: the sources of edges into seed nodes need states; ends of seed edges are seeds."""
        return 0 if self.targets == "seeds" else 1


class EdgeMask(Objective):
    """Cross entropy of target edges against pairs that are none.

    A pair is hidden by its key (`pair_mask`): all its edges leave all hops that the encoder reads, on every rank. The
    targets are those of the hidden edges that the first hop has, hence each once in the global batch. For each target
    u -> v a negative takes a seed of the global batch of u's type in u's place; it is left out where it is u or v
    itself, or where the batch has no such seed. Where seeds are edges, these are the targets, and negatives come with
    them (`sampling.edge_seeds`), from the whole graph. The loss is mean(targets) + mean(negatives) + degree_weight *
    mean over seeds of (predicted - number of target edges into the seed)^2 + kl_weight * mean over seeds of the
    divergence. With rate 0 and the dot decoder this is GAE, with `kl_weight` VGAE, on sampled edges.

    An embedding is what the encoder puts out: of VGAE the state of which mean and log-variance are linear maps.
    Source: Li et al., "What's behind the mask: understanding masked graph modeling for graph autoencoders", KDD 2023,
    section 4; Kipf and Welling, "Variational graph auto-encoders", 2016.
    """

    def __init__(self, config: EdgeMaskConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        """Raises BadInput when `schema` has no relations."""
        super().__init__()
        if not schema.relations:
            raise BadInput(
                "objective.name=edgemask",
                "no relations",
                rule="edgemask predicts edges, so the graph needs some",
                remedy="ingest an edge table",
            )
        self.config = config
        self.encoder_config = encoder_config
        self.schema = schema
        self.families = relation_families(schema)
        width = encoder_config.out_dim
        self.latent = None
        if config.kl_weight > 0.0:
            self.latent, width = LatentHeads(width, config.latent_dim), config.latent_dim
        self.decoder = make_pair_decoder(
            config.decoder, in_dim=width, hidden_dim=config.decoder_dim, families=self.families
        )
        self.degree = Head(width, config.decoder_dim, 1, activation="relu") if config.degree_weight > 0.0 else None

    @property
    def reach(self) -> int:
        """1: both ends of an edge into a seed node are decoded; 0 where seeds are edges."""
        return self.config.reach

    def check_seed_types(self, seed_types: Sequence[str]) -> None:
        """Raise BadInput where a relation into seeds has sources that never are seeds: it would have no negatives."""
        if self.config.targets == "seeds":
            return  # which come with their negatives
        check_sources_are_seeds(self.schema, seed_types, objective="edgemask")

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss of this rank's targets; see `Objective.forward`. Terms are counted by seeds."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        masked, hops = None, batch.hops
        if self.config.targets == "hidden":
            masked = mask_pairs(
                batch,
                rate=self.config.mask_rate,
                families=self.families,
                keys=nodes.keys,
                noise=noise or Noise(0),
                num_read=encoder.num_layers,
            )
            hops = masked.hops[1:]
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree, batch.learned)
        h = encoder(h, hops[: encoder.num_layers][::-1], nodes, noise, batch.num_seeds, group=group)
        divergence = None
        if self.latent is not None:
            latents = self.latent(h, nodes.keys[: h.shape[0]], noise=noise)
            h, divergence = latents.sample, latents.divergence[: batch.num_seeds]
        h = full_precision(h)
        if masked is None:
            pairs = products_of_seed_edges(h[: batch.num_seeds], batch, families=self.families, group=group)
        else:
            pairs = self._products_of_hidden(h, batch, masked, noise=noise or Noise(0), group=group)
        found, absent = self._errors(pairs, noise=noise, layer=encoder.num_layers)
        counts = torch.tensor([found.shape[0], absent.shape[0]], dtype=torch.float64, device=h.device)
        num_found, num_absent = group.sum(counts).clamp(min=1.0).to(h.dtype)
        seeds = float(batch.num_seeds_global)  # so that pairs, too, are a mean once the loss is divided by seeds
        loss = seeds * (found.sum() / num_found + absent.sum() / num_absent)
        if self.degree is not None:
            predicted = self.degree(h[: batch.num_seeds], num_seeds=batch.num_seeds, group=group).squeeze(1)
            loss = loss + self.config.degree_weight * (full_precision(predicted) - pairs.num_into_seed).square().sum()
        if divergence is not None:
            loss = loss + self.config.kl_weight * divergence.sum()
        return LossSum(
            loss_sum=loss,
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=h.device),
            metrics={"target_edges": counts[0], "negative_pairs": counts[1]},
        )

    def _errors(self, pairs: PairProducts, *, noise: Noise | None, layer: int) -> tuple[Tensor, Tensor]:
        """Cross entropy of every target edge, and of every negative that is left; both hang on all that they read."""
        found, absent = (
            self.decoder(
                x if noise is None else noise.dropout(x, keys, self.config.decoder_dropout, view=view, layer=layer),
                family,
            )
            for view, (x, keys, family) in enumerate(
                (
                    (pairs.found, pairs.found_keys, pairs.found_family),
                    (pairs.absent, pairs.absent_keys, pairs.absent_family),
                )
            )
        )
        return softplus(-found), softplus(absent)

    def _products_of_hidden(
        self, h: Tensor, batch: MiniBatch, masked: MaskedBatch, *, noise: Noise, group: Group
    ) -> PairProducts:
        """Hidden edges into this rank's seeds, and those of their negatives that are left."""
        seeds = GatheredSeeds.of(h[: batch.num_seeds], batch, group=group)
        keys = edge_keys(masked.relation, masked.position)
        chosen = self._draw_negatives(seeds, batch, masked, keys, noise=noise)
        kept = (chosen >= 0).nonzero().squeeze(1)
        return PairProducts(
            found=h[masked.source] * h[masked.target],
            found_keys=keys,
            found_family=masked.family,
            absent=seeds.states[chosen[kept]] * h[masked.target[kept]],
            absent_keys=keys[kept],
            absent_family=masked.family[kept],
            num_into_seed=torch.bincount(masked.target, minlength=batch.num_seeds),
        )

    def _draw_negatives(
        self, seeds: GatheredSeeds, batch: MiniBatch, masked: MaskedBatch, keys: Tensor, *, noise: Noise
    ) -> Tensor:
        """int64 [P]: row of the gathered seed that takes the source's place; -1 where there is none to take."""
        chosen = torch.full_like(keys, -1)
        source_type = batch.node_type[masked.source]
        for kind in range(len(batch.features)):
            rows = (source_type == kind).nonzero().squeeze(1)
            chosen[rows] = seeds.draw(keys[rows], kind, noise=noise, site=Site.NEGATIVE)
        taken = chosen.clamp(min=0)
        for end in (masked.source, masked.target):
            is_end = (seeds.node_id[taken] == batch.node_id[end]) & (seeds.node_type[taken] == batch.node_type[end])
            chosen = torch.where(is_end, -1, chosen)
        return chosen
