"""GraphMAE: hide the features of some nodes and rebuild them from their neighbourhoods.

Shapes: N nodes of the batch, S seeds, M masked seeds of one type, F_t feature columns of type t, D hidden columns.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sampling.batch import MiniBatch
from service.encoders.base import Encoder, EncoderConfig, make_activation
from service.encoders.convolution import linear
from service.encoders.nodes import Nodes
from service.encoders.registry import make_convolution
from service.group import Group
from service.noise import Noise, Site
from service.objectives.base import LossSum, Objective
from service.schema import GraphSchema
from storage.errors import BadInput


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

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0 if self.decoder == "mlp" else 1


class GraphMae(Objective):
    """Masked feature reconstruction with a scaled cosine error, on masked seeds.

    Every node of the batch is masked by its key with probability `mask_rate`. A masked node shows a learned token,
    or with probability `replace_rate` the features of a seed of the global batch. Hidden states pass a bias-free
    projection, masked nodes' are zeroed again, and a decoder of one layer rebuilds the raw features of masked
    seeds, and only these: its output is as wide as the features. Types without features are neither masked nor
    rebuilt. The encoder's dropout rates and kernels hold in the decoder too.
    Source: Hou et al., "GraphMAE: self-supervised masked graph autoencoders", KDD 2022, section 3.2.
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

    @property
    def reach(self) -> int:
        """1 for a decoder that reads neighbours, else 0."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss over this rank's masked seeds; see `Objective.forward`."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        masked_N = self._choose_masked(batch, nodes, noise or Noise(0))
        features = self._corrupt(batch, nodes, masked_N, noise=noise or Noise(0), group=group, dtype=encoder.dtype)
        h = encoder.input(features, batch.node_type, batch.in_degree, batch.out_degree)
        hops = batch.hops[self.reach :][::-1]
        h = encoder(h, hops, nodes, noise, batch.num_seeds, group=group)
        h = self.project(h)
        if self.reach:
            h = h.masked_fill(masked_N[: h.shape[0], None], 0.0)
        losses, counts, norms = [], [], []
        for kind, decoder in self.decoders.items():
            rows = masked_N[: batch.num_seeds] & (batch.node_type[: batch.num_seeds] == int(kind))
            rows_M = rows.nonzero().squeeze(1)
            rebuilt_MF = self._decode(decoder, h, rows_M, batch=batch, nodes=nodes, noise=noise, encoder=encoder)
            table = batch.features[int(kind)]
            assert table is not None
            # a seed's row in its type's table: how many seeds of that type stand before it
            place_S = (batch.node_type[: batch.num_seeds] == int(kind)).cumsum(0) - 1
            errors = scaled_cosine_error(
                rebuilt_MF, table[place_S[rows_M]].to(encoder.dtype), exponent=self.config.exponent
            )
            losses.append(errors.sum())
            counts.append(rows_M.shape[0])
            norms.append(rebuilt_MF.detach().norm(dim=1).sum())
        return LossSum(
            loss_sum=torch.stack(losses).sum(),
            count=torch.tensor(float(sum(counts)), dtype=torch.float64, device=h.device),
            metrics={"rebuilt_norm": torch.stack(norms).sum()},
        )

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
    ) -> Tensor:
        """[M, F_t]: rebuilt features of the seeds `rows_M`."""
        rate, layer = self.encoder_config.feature_dropout, encoder.num_layers
        if noise is not None:
            h = noise.dropout(h, nodes.keys[: h.shape[0]], rate, layer=layer, site=Site.FEATURE)
        if not self.reach:
            rebuilt: Tensor = decoder(h[rows_M])
            return rebuilt
        decoded: Tensor = decoder(h, hop=batch.hops[0], nodes=nodes, rows=rows_M, noise=noise, layer=layer)
        return decoded


def scaled_cosine_error(rebuilt_MF: Tensor, target_MF: Tensor, *, exponent: float) -> Tensor:
    """[M]: (1 - cosine of each row with its target) ** exponent, in at least float32.

    Source: GraphMAE, eq. 2. A row of zeros has cosine 0 with anything, and no gradient: there it has no limit, and one
    seed without a neighbour to see would drown all others. The decoder of such a seed puts out its bias, first 0.
    """
    if rebuilt_MF.dtype in (torch.float16, torch.bfloat16):
        rebuilt_MF = rebuilt_MF.float()
    rebuilt_MF = rebuilt_MF.masked_fill((rebuilt_MF == 0).all(1, keepdim=True), 0.0)
    cosine = cosine_similarity(rebuilt_MF, target_MF.to(rebuilt_MF.dtype), dim=1, eps=1e-12)
    error: Tensor = (1.0 - cosine).clamp(min=0.0)
    return error**exponent
