"""GraphMAE and GraphMAE2: hide the features of some nodes and rebuild them from their neighbourhoods.

Shapes: N nodes of the batch, S seeds, M masked seeds of one type, F_t feature columns of type t, D hidden columns.
"""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from sampling.batch import MiniBatch
from service.encoders.base import Encoder, EncoderConfig, make_activation
from service.encoders.convolution import linear
from service.encoders.nodes import Nodes
from service.encoders.registry import make_convolution
from service.group import Group
from service.noise import Noise, Site
from service.objectives.base import LossSum, Objective
from service.objectives.cosine_error import scaled_cosine_error
from service.objectives.latent_prediction import LatentPrediction
from service.schema import GraphSchema
from storage.errors import BadInput

__all__ = ["GraphMae", "GraphMaeConfig", "scaled_cosine_error"]

NUM_REMASKS = 3
"""decodings of GraphMAE2, in all of its settings"""


class GraphMaeConfig(BaseModel):
    """The `objective` section of a run file for graphmae."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["graphmae"] = Field("graphmae", description="masked feature reconstruction")
    mask_rate: float = Field(0.5, gt=0.0, le=1.0, description="share of the nodes whose features are hidden")
    replace_rate: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="share of those that show another seed's features, not the mask token",
    )
    exponent: float = Field(3.0, ge=1.0, description="power of the cosine error: above 1 easy nodes weigh less")
    decoder: Literal["gat", "gcn", "gin", "sage", "mlp"] = Field(
        "gat", description="one layer from hidden states to features; mlp reads no neighbours"
    )
    latent_weight: float = Field(
        0.0,
        ge=0.0,
        description="above 0 this is GraphMAE2: weight of predicting, from the states of seeds, what slowly moving "
        "copies of encoder and projector make of the same seeds without masks",
    )
    num_remasks: int | None = Field(
        None,
        ge=0,
        description="times that hidden states are decoded, each time with other nodes hidden at random; 0 decodes "
        "once, with the masked nodes hidden again; unset: 3 with latent_weight above 0 and a decoder that reads "
        "neighbours, else 0",
    )
    remask_rate: float = Field(0.5, gt=0.0, le=1.0, description="of num_remasks above 0: share of nodes hidden")
    projector_dim: int = Field(256, ge=1, description="of latent_weight above 0: hidden columns of the projector")
    momentum: float = Field(
        0.996, ge=0.0, le=1.0, description="of latent_weight above 0: of the slowly moving copies, in every step"
    )

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0 if self.decoder == "mlp" else 1

    @property
    def num_random_remasks(self) -> int:
        """`num_remasks` where it is set, else what stands for it."""
        if self.num_remasks is None:
            return NUM_REMASKS if self.latent_weight > 0.0 and self.decoder != "mlp" else 0
        return self.num_remasks

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.decoder == "mlp" and self.num_remasks:
            raise ValueError(
                f"num_remasks={self.num_remasks}: decoder=mlp reads no neighbours, so it has nothing to rebuild a "
                "hidden node from; leave num_remasks out, or take another decoder"
            )
        idle = {"remask_rate": "num_remasks is 0"} if self.num_random_remasks == 0 else {}
        if self.latent_weight == 0.0:
            idle |= {"projector_dim": "latent_weight is 0", "momentum": "latent_weight is 0"}
        for key, reason in idle.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise ValueError(f"{key}={value}: it has no effect where {reason}; leave it out")
        return self


class GraphMae(Objective):
    """Masked feature reconstruction with a scaled cosine error, on masked seeds.

    Every node of the batch is masked by its key with probability `mask_rate`. A masked node shows a learned token,
    or with probability `replace_rate` the features of a seed of the global batch. Hidden states pass a bias-free
    projection, masked nodes' are zeroed again, and a decoder of one layer rebuilds the raw features of masked
    seeds, and only these: its output is as wide as the features. Types without features are neither masked nor
    rebuilt. The encoder's dropout rates and kernels hold in the decoder too; drop-edge is its `edge_dropout`.
    With `num_remasks` j = 1..K the masked nodes are not zeroed, but the states are decoded K times, each time with a
    learned token for those nodes that its keys choose with probability `remask_rate`, and the K losses are added.
    With `latent_weight` the loss is mean over masked seeds of these + latent_weight * mean over seeds of
    `LatentPrediction`: both means are of the global batch, and terms are counted by seeds.
    Sources: Hou et al., "GraphMAE: self-supervised masked graph autoencoders", KDD 2022, section 3.2; Hou et al.,
    "GraphMAE2: a decoding-enhanced masked self-supervised graph learner", WWW 2023, section 3.
    """

    def __init__(self, config: GraphMaeConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        """Raises BadInput when no node type of `schema` has features."""
        super().__init__()
        dims = {number: kind.feature_dim for number, kind in enumerate(schema.node_types) if kind.feature_dim}
        if not dims:
            raise BadInput(
                "objective.name=graphmae",
                f"no features on node types {', '.join(kind.name for kind in schema.node_types)}",
                rule="graphmae rebuilds node features, so at least one node type needs them",
                remedy="ingest node tables that have a features column",
            )
        self.config = config
        self.encoder_config = encoder_config
        width = encoder_config.out_dim
        self.tokens = nn.ParameterDict({str(kind): torch.zeros(dim) for kind, dim in dims.items()})
        self.project = linear(width, width)
        self.decoders = nn.ModuleDict({str(kind): self._make_decoder(kind, dim, schema) for kind, dim in dims.items()})
        self.remask_token = nn.Parameter(torch.zeros(width)) if config.num_random_remasks else None
        self.latent: LatentPrediction | None = None
        if config.latent_weight > 0.0:
            self.latent = LatentPrediction(
                schema=schema,
                encoder_config=encoder_config,
                projector_dim=config.projector_dim,
                momentum=config.momentum,
            )

    @property
    def reach(self) -> int:
        """1 for a decoder that reads neighbours, else 0."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss over this rank's masked seeds; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        masked_N = self._choose_masked(batch, nodes, noise or Noise(0))
        features = self._corrupt(batch, nodes, masked_N, noise=noise or Noise(0), group=group, dtype=encoder.dtype)
        h = encoder.input(features, batch.node_type, batch.in_degree, batch.out_degree, batch.learned)
        hops = batch.hops[self.reach :][::-1]
        h = encoder(h, hops, nodes, noise, batch.num_seeds, group=group)
        latent_S = None if self.latent is None else self.latent(h[: batch.num_seeds], batch, nodes, group=group)
        h = self.project(h)
        rows_of = {
            kind: (masked_N[: batch.num_seeds] & (batch.node_type[: batch.num_seeds] == int(kind))).nonzero().squeeze(1)
            for kind in self.decoders
        }
        losses, norms = [], []
        for number in range(max(1, self.config.num_random_remasks)):
            shown = self._hide(h, masked_N, nodes, noise=noise or Noise(0), number=number)
            for kind, decoder in self.decoders.items():
                rows_M = rows_of[kind]
                rebuilt_MF = self._decode(
                    decoder, shown, rows_M, batch=batch, nodes=nodes, noise=noise, encoder=encoder, number=number
                )
                table = batch.features[int(kind)]
                assert table is not None
                # a seed's row in its type's table: how many seeds of that type stand before it
                place_S = (batch.node_type[: batch.num_seeds] == int(kind)).cumsum(0) - 1
                errors = scaled_cosine_error(
                    rebuilt_MF, table[place_S[rows_M]].to(encoder.dtype), exponent=self.config.exponent
                )
                losses.append(errors.sum())
                norms.append(rebuilt_MF.detach().norm(dim=1).sum())
        loss_sum = torch.stack(losses).sum()
        count = float(sum(rows_M.shape[0] for rows_M in rows_of.values()))
        if latent_S is not None:
            masked = group.sum(torch.tensor(count, dtype=torch.float64, device=h.device))
            # a mean over masked seeds once the sum is divided by seeds
            scale = float(batch.num_seeds_global) / masked.clamp(min=1.0)
            loss_sum = loss_sum * scale.to(loss_sum.dtype) + self.config.latent_weight * latent_S.sum()
            count = float(batch.num_seeds)
        return LossSum(
            loss_sum=loss_sum,
            count=torch.tensor(count, dtype=torch.float64, device=h.device),
            metrics={"rebuilt_norm": torch.stack(norms).sum()},
        )

    def begin(self, encoder: Encoder) -> None:
        """Copy the encoder's weights to the target network, where there is one."""
        if self.latent is not None:
            self.latent.begin(encoder)

    def after_step(self, encoder: Encoder, *, done: int, total_steps: int) -> None:
        """Move the target network, where there is one, towards the encoder."""
        if self.latent is not None:
            self.latent.follow(encoder)

    def _make_decoder(self, kind: int, feature_dim: int, schema: GraphSchema) -> nn.Module:
        width = self.encoder_config.out_dim
        if self.config.decoder == "mlp":
            return nn.Sequential(
                linear(width, width, bias=True),
                make_activation(self.encoder_config.activation),
                linear(width, feature_dim, bias=True),
            )
        # one head, as the authors' code; the width of a table need not divide
        config = self.encoder_config.model_copy(update={"name": self.config.decoder, "num_heads": 1})
        return make_convolution(
            config,
            in_dim=width,
            out_dim=feature_dim,
            schema=schema,
            relations=schema.relations_into(kind),
        )

    def _choose_masked(self, batch: MiniBatch, nodes: Nodes, noise: Noise) -> Tensor:
        """Bool [N]: nodes of types with features, each with probability mask_rate."""
        has_features = torch.tensor([table is not None for table in batch.features], device=batch.node_type.device)
        return noise.select(nodes.keys, self.config.mask_rate, site=Site.MASK) & has_features[batch.node_type]

    def _corrupt(
        self,
        batch: MiniBatch,
        nodes: Nodes,
        masked_N: Tensor,
        *,
        noise: Noise,
        group: Group,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, ...]:
        """The batch's features with masked rows showing the token or a partner's features."""
        replaced_N = masked_N & noise.select(nodes.keys, self.config.replace_rate, site=Site.REPLACE)
        corrupted: list[Tensor | None] = []
        for kind, table in enumerate(batch.features):
            if table is None:
                corrupted.append(None)
                continue
            of_kind = batch.node_type == kind
            masked, replaced = masked_N[of_kind], replaced_N[of_kind]
            shown = table.to(dtype)
            if self.config.replace_rate > 0.0:
                num_seeds = int(of_kind[: batch.num_seeds].sum())
                partners = group.gather_rows(table[:num_seeds])
                if partners.shape[0]:
                    rows = replaced.nonzero().squeeze(1)
                    chosen = noise.partners(nodes.keys[of_kind][rows], partners.shape[0])
                    shown = shown.index_copy(0, rows, partners[chosen].to(dtype))
                    masked = masked & ~replaced
            rows = masked.nonzero().squeeze(1)
            token = self.tokens[str(kind)].to(dtype)
            corrupted.append(shown.index_copy(0, rows, token.expand(rows.shape[0], -1)))
        return tuple(corrupted)

    def _hide(self, h: Tensor, masked_N: Tensor, nodes: Nodes, *, noise: Noise, number: int) -> Tensor:
        """`h` as decoding `number` sees it."""
        if not self.reach:
            return h
        if self.remask_token is None:
            return h.masked_fill(masked_N[: h.shape[0], None], 0.0)
        keys = nodes.keys[: h.shape[0]]
        hidden = noise.select(keys, self.config.remask_rate, view=number, site=Site.REMASK)
        return torch.where(hidden[:, None], self.remask_token.to(h.dtype), h)

    def _decode(
        self,
        decoder: nn.Module,
        h: Tensor,
        rows_M: Tensor,
        *,
        batch: MiniBatch,
        nodes: Nodes,
        noise: Noise | None,
        encoder: Encoder,
        number: int,
    ) -> Tensor:
        """[M, F_t]: rebuilt features of the seeds `rows_M`, by decoding `number`."""
        rate, layer = self.encoder_config.feature_dropout, encoder.num_layers
        if noise is not None:
            h = noise.dropout(h, nodes.keys[: h.shape[0]], rate, view=number, layer=layer, site=Site.FEATURE)
        if not self.reach:
            rebuilt: Tensor = decoder(h[rows_M])
            return rebuilt
        decoded: Tensor = decoder(h, hop=batch.hops[0], nodes=nodes, rows=rows_M, noise=noise, view=number, layer=layer)
        return decoded
