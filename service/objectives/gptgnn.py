"""GPT-GNN: generate the seeds' hidden edges and hidden features in one pass.

Shapes: N nodes of the batch, S seeds, P target edges into them, C candidates, F_t feature columns of type t, D columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sampling.batch import MiniBatch
from sampling.masks import node_keys
from service.encoders import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise, Site
from service.objectives.base import LossSum, Objective
from service.objectives.gathered_seeds import GatheredSeeds, check_sources_are_seeds
from service.objectives.gptgnn_copies import with_copies
from service.objectives.gptgnn_edges import Candidates, Matcher, SeedQueue, contrast, linked
from service.objectives.graphmae import scaled_cosine_error
from service.objectives.heads import Head
from service.objectives.pair_mask import MaskedBatch, mask_pairs, relation_families
from service.objectives.seeds import full_precision
from service.schema import GraphSchema
from storage.errors import BadInput


class GptGnnConfig(BaseModel):
    """The `objective` section of a run file for gptgnn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["gptgnn"] = Field("gptgnn", description="generation of hidden edges and features (GPT-GNN)")
    mask_rate: float = Field(
        0.5, gt=0.0, le=1.0, description="share of the seeds' node pairs whose edges are hidden and generated"
    )
    num_negatives: int = Field(
        255, ge=1, description="seeds of the step, at most, that a hidden neighbour is told from, for each node type"
    )
    queue_size: int = Field(
        256, ge=0, description="seeds of steps before that it is told from too, for each node type; 0 for none"
    )
    attribute_weight: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="of the error of the seeds' features; the edges have the rest. 0 generates no features",
    )

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's: the sources of edges into seeds need states."""
        return 1


class GptGnn(Objective):
    """The mean error of hidden edges into seeds and that of the seeds' features, weighted.

    Edges: a share of the node pairs that a seed of the global batch is part of is hidden by key (`pair_mask`): all
    their edges leave all hops that the encoder reads, on every rank. Targets are those of them that the first hop has.
    Of a target u -> v the error is the cross entropy of u among itself, `num_negatives` seeds of the global batch of
    u's type, the same ones for all targets, and the queue of those of the steps before; v and its sampled neighbours
    are left out.

    Features: a copy of each seed shows a learned token in place of its features and reads what its seed reads. The
    error is 1 - the cosine of what a decoder makes of the copy's state with the seed's raw features, whatever their
    scale; seeds of types without features have none. As in the paper, a neighbour of a copy may have read the seed.

    Training moves the queue; evaluation reads it as it is.
    Source: Hu et al., "GPT-GNN: generative pre-training of graph neural networks", KDD 2020, sections 3.3 to 3.5, with
    pairs hidden by key, negatives drawn once a step, and means over all targets in place of a mean for each relation.
    """

    def __init__(self, config: GptGnnConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        """Raises BadInput when `schema` has no relations, or no features to generate."""
        super().__init__()
        _check(config, schema)
        self.config = config
        self.encoder_config = encoder_config
        self.schema = schema
        self.families = relation_families(schema)
        width = encoder_config.out_dim
        self.matchers = nn.ModuleList(Matcher(width) for _ in schema.relations)
        sources = sorted({relation.source_type for relation in schema.relations})
        self.queues = nn.ModuleDict(
            {str(kind): SeedQueue(config.queue_size, width) for kind in sources if config.queue_size}
        )
        dims = {number: kind.feature_dim for number, kind in enumerate(schema.node_types) if kind.feature_dim}
        if config.attribute_weight == 0.0:
            dims = {}
        self.tokens = nn.ParameterDict({str(kind): torch.zeros(dim) for kind, dim in dims.items()})
        self.decoders = nn.ModuleDict(
            {str(kind): Head(width, width, dim, activation="relu") for kind, dim in dims.items()}
        )

    @property
    def reach(self) -> int:
        """1: both ends of an edge into a seed are compared."""
        return self.config.reach

    def check_seed_types(self, seed_types: Sequence[str]) -> None:
        """Raise BadInput where a relation into seeds has sources that never are seeds: it would have no negatives."""
        check_sources_are_seeds(self.schema, seed_types, objective="gptgnn")

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss of this rank's seeds; see `Objective.forward`. Terms are counted by seeds."""
        keys = Nodes.of(batch).keys
        masked = self.hide(
            batch, keys, group.gather_rows(keys[: batch.num_seeds]), noise=noise, num_read=encoder.num_layers
        )
        h, copies = self._encode(encoder, batch, masked, noise=noise, group=group)
        with torch.autocast(h.device.type, enabled=False):
            edges = self._edge_errors(h, batch, masked, noise=noise, group=group)
        attributes = self._attribute_errors(copies, batch, group=group)
        counts = torch.tensor([edges.shape[0], attributes.shape[0]], dtype=torch.float64, device=h.device)
        # each kind is a mean over its own terms once the loss is divided by seeds
        scales = (batch.num_seeds_global / group.sum(counts).clamp(min=1.0)).to(h.dtype)
        losses = torch.stack([edges.sum(), attributes.sum()]) * scales
        share = self.config.attribute_weight
        return LossSum(
            loss_sum=(losses * losses.new_tensor([1.0 - share, share])).sum(),
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=h.device),
            metrics={"edges": losses[0].detach(), "attributes": losses[1].detach()},
        )

    def hide(
        self, batch: MiniBatch, keys: Tensor, seed_keys: Tensor, *, noise: Noise | None, num_read: int
    ) -> MaskedBatch:
        """`batch` without the edges of hidden pairs.

        Args:
            keys: int64 [N] of the batch's nodes.
            seed_keys: int64 of the seeds of the global batch.
            num_read: hops that the encoder reads.
        """
        return mask_pairs(
            batch,
            rate=self.config.mask_rate,
            families=self.families,
            keys=keys,
            noise=noise or Noise(0),
            num_read=num_read,
            ends=torch.isin(keys, seed_keys),
        )

    def _encode(
        self, encoder: Encoder, batch: MiniBatch, masked: MaskedBatch, *, noise: Noise | None, group: Group
    ) -> tuple[Tensor, Tensor]:
        """[n, D]: states of the nodes within one hop of the seeds; [S, D]: of the seeds' copies, or [0, D]."""
        hops = masked.hops[1 : 1 + encoder.num_layers]
        seen = replace(batch, hops=hops)
        if self.decoders:
            tokens = {int(kind): token for kind, token in self.tokens.items()}
            seen = with_copies(batch, hops, tokens=tokens, dtype=encoder.dtype)
        nodes = Nodes.of(seen, kernels=self.encoder_config.kernels)
        h = encoder.input(seen.features, seen.node_type, seen.in_degree, seen.out_degree, seen.learned)
        h = full_precision(encoder(h, seen.hops[::-1], nodes, noise, batch.num_seeds, group=group))
        num_copies = batch.num_seeds if self.decoders else 0
        return h[: h.shape[0] - num_copies], h[h.shape[0] - num_copies :]

    def _edge_errors(
        self, h: Tensor, batch: MiniBatch, masked: MaskedBatch, *, noise: Noise | None, group: Group
    ) -> Tensor:
        """[P]: of the targets, relation by relation; hangs on every matcher. Moves the queues in training."""
        seeds = GatheredSeeds.of(h[: batch.num_seeds], batch, group=group)
        candidates: dict[int, Candidates] = {}
        for kind in sorted({relation.source_type for relation in self.schema.relations}):
            candidates[kind] = newest = self._draw(seeds, kind, noise=noise or Noise(0))
            if self.config.queue_size:
                queue = self.queues[str(kind)]
                assert isinstance(queue, SeedQueue)
                candidates[kind] = queue.behind(newest)
                if self.training and noise is not None:
                    queue.push(newest)
        errors = []
        for number, (relation, matcher) in enumerate(zip(self.schema.relations, self.matchers, strict=True)):
            rows = (masked.relation == number).nonzero().squeeze(1)
            source, target = masked.source[rows], masked.target[rows]
            others = candidates[relation.source_type]
            found, scores = matcher(h[target], h[source], others.states)
            left_out = linked(batch, others, relation=number, source_type=relation.source_type, target_P=target)
            errors.append(contrast(found, scores, left_out))
        return torch.cat(errors)

    def _draw(self, seeds: GatheredSeeds, kind: int, *, noise: Noise) -> Candidates:
        """At most `num_negatives` seeds of a type, in an order by key: which they are depends on no rank."""
        rows = seeds.of_type(kind)
        keys = node_keys(seeds.node_type[rows], seeds.node_id[rows])
        order = noise.partners(keys, 1 << 53, site=Site.NEGATIVE).argsort(stable=True)
        rows = rows[order[: self.config.num_negatives]]
        return Candidates(states=seeds.states[rows], node_id=seeds.node_id[rows])

    def _attribute_errors(self, copies: Tensor, batch: MiniBatch, *, group: Group) -> Tensor:
        """One for each seed whose type has features, type by type; hangs on every decoder."""
        errors = [copies.new_zeros(0)]
        for name, decoder in self.decoders.items():
            kind = int(name)
            rows = (batch.node_type[: batch.num_seeds] == kind).nonzero().squeeze(1)
            table = batch.features[kind]
            assert table is not None
            rebuilt = decoder(copies[rows], num_seeds=0, group=group)
            errors.append(scaled_cosine_error(rebuilt, table[: rows.shape[0]].to(copies.dtype), exponent=1.0))
        return torch.cat(errors)


def _check(config: GptGnnConfig, schema: GraphSchema) -> None:
    """BadInput for what cannot be generated."""
    if not schema.relations:
        raise BadInput(
            "objective.name=gptgnn",
            "no relations",
            rule="gptgnn generates edges, so the graph needs some",
            remedy="ingest an edge table",
        )
    if config.attribute_weight > 0.0 and all(kind.feature_dim is None for kind in schema.node_types):
        raise BadInput(
            f"objective.attribute_weight={config.attribute_weight}",
            f"no features on node types {', '.join(kind.name for kind in schema.node_types)}",
            rule="attribute generation rebuilds node features, so at least one node type needs them",
            remedy="set objective.attribute_weight=0, or ingest node tables that have a features column",
        )
