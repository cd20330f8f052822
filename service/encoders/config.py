"""The `encoder` section of a run file."""

import re
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from service.encoders.jumping import JumpingName, joined_dim
from service.encoders.relations import RelationWeights
from service.message_passing import Kernels
from service.norm import NormName

ConvolutionName = Literal["sage", "gcn", "gat", "gin", "sgc", "mlp"]
ActivationName = Literal["prelu", "relu", "elu", "gelu", "none"]
ResidualName = Literal["none", "post", "pre"]
IMPORT_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
CONVOLUTIONS: tuple[str, ...] = get_args(ConvolutionName)


class EncoderConfig(BaseModel):
    """The `encoder` section of a run file; the word alone, `encoder: gcn`, is its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        "sage",
        description="convolution: sage, gcn, gat or gin; sgc: neighbourhood sums without weights and one linear map "
        "behind the last; mlp: the node alone, which reads no hop; or a class of your own by its import path, "
        "package.module:Class (README, Your own encoder)",
    )
    options: dict[str, JsonValue] = Field({}, description="keyword arguments of a class of your own")
    num_layers: int = Field(2, ge=1, description="layers; each reads one hop, those of mlp none")
    hidden_dim: int = Field(256, ge=1, description="output columns of every layer, all heads together")
    num_heads: int = Field(4, ge=1, description="attention heads of gat; divides hidden_dim")
    aggregator: Literal["mean", "max"] = Field("mean", description="what sage takes of the neighbours")
    relation_weights: RelationWeights = Field(
        "sum",
        description="how the convolutions of several relations are joined: their sum, their mean over the relations "
        "in which a node has neighbours, or attention of each node to these relations",
    )
    activation: ActivationName = Field(
        "prelu",
        description="after every layer (sgc: after the last): prelu, relu, elu, gelu or none; with residual: pre "
        "before every layer but the first, and after the last",
    )
    norm: NormName = Field(
        "none",
        description="before the activation: none, layer, batch (statistics of all workers' seeds), or local-batch "
        "(of the same worker's seeds, which costs less and makes the result depend on the number of workers)",
    )
    residual: ResidualName = Field(
        "none",
        description="post adds each layer's input, through a linear map where widths differ, before norm and "
        "activation; pre puts norm and activation before the convolution and adds behind it, as DeeperGCN; true is "
        "post, false none",
    )
    jumping: JumpingName = Field(
        "none",
        description="what comes out: the last layer's states, or those of all layers concatenated (num_layers times "
        "hidden_dim columns), their maximum or their mean",
    )
    feature_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of every layer's input entries zeroed")
    attention_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of gat's attention entries zeroed")
    edge_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of sampled edges dropped in training")
    id_embedding_dim: int | None = Field(
        None,
        ge=1,
        description="columns of a learned row for each node of the types without features, read beside its "
        "log-degrees; unset for none",
    )
    id_embedding_types: tuple[str, ...] = Field(
        (), description="node types that have such rows; empty for all without features"
    )
    kernels: Kernels = Field("auto", description="message passing: auto (DGL where it runs, else torch), dgl, or torch")

    @property
    def out_dim(self) -> int:
        """Columns of what the encoder puts out."""
        return joined_dim(self.jumping, self.hidden_dim, num_layers=self.num_layers)

    @property
    def num_hops(self) -> int:
        """Hops that the layers read."""
        return 0 if self.name == "mlp" else self.num_layers

    @property
    def is_imported(self) -> bool:
        """Whether `name` is the import path of a class."""
        return self.name not in CONVOLUTIONS

    @property
    def varies_with_workers(self) -> str | None:
        """The setting that makes the result depend on the number of workers; None without it."""
        return "norm=local-batch" if self.norm == "local-batch" else None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        if name not in CONVOLUTIONS and not re.fullmatch(IMPORT_PATH, name):
            choices = ", ".join(f"'{choice}'" for choice in CONVOLUTIONS)
            raise ValueError(f"it is one of {choices}, or the import path of a class, package.module:Class")
        return name

    @field_validator("residual", mode="before")
    @classmethod
    def _residual_of_older_files(cls, value: Any) -> Any:
        return {True: "post", False: "none"}[value] if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.name == "gat" and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim}, num_heads={self.num_heads}: heads share the columns equally; "
                "make hidden_dim a multiple of num_heads"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_a_meaning(self) -> Self:
        """What an encoder has no use for is refused where it would change the model."""
        refused: dict[str, str] = {}
        if self.name in ("sgc", "mlp") or self.is_imported:
            refused["relation_weights"] = "sum"
        if self.name == "sgc" or self.is_imported:
            refused["residual"] = "none"
        if self.name == "sgc":
            refused["jumping"] = "none"
        if self.is_imported:
            refused["norm"] = "none"
        for key, only in refused.items():
            if getattr(self, key) != only:
                raise ValueError(f"{key}={getattr(self, key)}: it has no meaning for name={self.name}; leave it {only}")
        if self.id_embedding_types and self.id_embedding_dim is None:
            raise ValueError(f"id_embedding_types={list(self.id_embedding_types)}: their rows need id_embedding_dim")
        if self.options and not self.is_imported:
            raise ValueError(f"options: name={self.name} takes none; they are for a class named by its import path")
        return self
