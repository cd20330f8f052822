"""Pretext tasks together: log-degrees, parts of the graph, feature clusters and feature similarities of the seeds."""

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from sampling.batch import MiniBatch
from service.encoders import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.objectives.base import LossSum, Objective
from service.objectives.partition_task import PartitionTask
from service.objectives.pretext_tasks import ClusterTask, DegreeTask, SeedRows, SimilarityTask, TaskSum
from service.objectives.target_features import target_features
from service.schema import GraphSchema
from storage.errors import BadInput

TaskName = Literal["degree", "partition", "cluster", "similarity"]


class PretextConfig(BaseModel):
    """The `objective` section of a run file for pretext."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["pretext"] = Field("pretext", description="figures of seeds that need no labels, by linear heads")
    tasks: tuple[TaskName, ...] = Field(
        ("degree", "cluster", "similarity"),
        min_length=1,
        description="degree: logarithms of degrees; partition: part of the graph, found by label propagation before "
        "training; cluster: k-means cluster of the features; similarity: cosine of the features of two seeds",
    )
    weights: tuple[float, ...] = Field((), description="of the tasks, in their order; empty for 1 each")
    num_parts: int = Field(32, ge=2, description="parts of the whole graph for partition, at most")
    num_clusters: int = Field(32, ge=2, description="clusters of each node type with features")
    num_averages: int = Field(
        1,
        ge=0,
        description="times that features are averaged over sampled neighbours of the same type before they are "
        "clustered or compared; at most the encoder's layers",
    )
    num_pairs: int = Field(4, ge=1, description="partners that similarity draws for each seed")

    @model_validator(mode="after")
    def _one_weight_a_task(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={list(self.tasks)}: one is named twice; give it a weight instead")
        if self.weights and len(self.weights) != len(self.tasks):
            raise ValueError(
                f"weights={list(self.weights)}: {len(self.tasks)} tasks have as many weights, or none is given"
            )
        if any(not weight > 0.0 for weight in self.weights):
            raise ValueError(f"weights={list(self.weights)}: weights are above 0; leave out a task that has none")
        return self

    @property
    def reach(self) -> int:
        """Hops beyond the encoder's."""
        return 0


class Pretext(Objective):
    """The weighted sum of its tasks' mean losses over the seeds of the global batch (`pretext_tasks`).

    Clusters and similarities are those of features scaled to length 1, averaged over `num_averages` sampled hops.
    Source: the tasks of Jin et al., "Self-supervised learning on graphs: deep insights and new direction", 2020,
    section 3, in forms that need nothing but the batch, and the parts of the graph that a run finds as it begins.
    """

    def __init__(self, config: PretextConfig, *, schema: GraphSchema, encoder_config: EncoderConfig) -> None:
        """Raises BadInput when the graph lacks what a task predicts, or the encoder reads too few hops."""
        super().__init__()
        self.config = config
        self.encoder_config = encoder_config
        self.schema = schema
        self.weights = config.weights or (1.0,) * len(config.tasks)
        dims = {number: kind.feature_dim for number, kind in enumerate(schema.node_types) if kind.feature_dim}
        self.read_types = tuple(dims) if {"cluster", "similarity"} & set(config.tasks) else ()
        _check(config, schema=schema, encoder_config=encoder_config, has_features=bool(dims))
        width = encoder_config.out_dim
        self.tasks = nn.ModuleDict()
        for name in config.tasks:
            match name:
                case "degree":
                    self.tasks[name] = DegreeTask(width, schema=schema)
                case "partition":
                    self.tasks[name] = PartitionTask(width, num_parts=config.num_parts)
                case "cluster":
                    self.tasks[name] = ClusterTask(width, dims=dims, num_clusters=config.num_clusters)
                case "similarity":
                    self.tasks[name] = SimilarityTask(width, dims=dims, num_pairs=config.num_pairs)

    @property
    def reach(self) -> int:
        """0: seeds alone are read."""
        return self.config.reach

    def forward(self, encoder: Encoder, batch: MiniBatch, *, noise: Noise | None, group: Group) -> LossSum:
        """Loss of this rank's seeds; see `Objective.forward`. Terms are counted by seeds."""
        nodes = Nodes.of(batch, kernels=self.encoder_config.kernels)
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree, batch.learned)
        h = encoder(h, batch.hops[: encoder.num_layers][::-1], nodes, noise, batch.num_seeds, group=group)
        h = h[: batch.num_seeds]
        if h.dtype in (torch.float16, torch.bfloat16):
            h = h.float()
        features = {
            kind: target_features(
                batch, kind, schema=self.schema, num_averages=self.config.num_averages, dtype=encoder.dtype
            )
            for kind in self.read_types
        }
        seeds = SeedRows(batch=batch, states=h, keys=nodes.keys[: batch.num_seeds], features=features)
        sums: list[TaskSum] = [task(seeds, noise=noise, group=group) for task in self.tasks.values()]
        counts = torch.tensor([found.count for found in sums], dtype=torch.float64, device=h.device)
        # each task is a mean over its own terms once the loss is divided by seeds
        scales = (batch.num_seeds_global / group.sum(counts).clamp(min=1.0)).to(h.dtype)
        losses = torch.stack([found.loss_sum for found in sums])
        weights = torch.tensor(self.weights, dtype=h.dtype, device=h.device)
        scaled = losses * scales
        return LossSum(
            loss_sum=(weights * scaled).sum(),
            count=torch.tensor(float(batch.num_seeds), dtype=torch.float64, device=h.device),
            metrics={name: loss.detach() for name, loss in zip(self.config.tasks, scaled, strict=True)},
        )


def _check(config: PretextConfig, *, schema: GraphSchema, encoder_config: EncoderConfig, has_features: bool) -> None:
    """BadInput for what cannot be predicted."""
    reads_features = [name for name in config.tasks if name in ("cluster", "similarity")]
    if reads_features and not has_features:
        raise BadInput(
            f"objective.tasks={list(config.tasks)}",
            f"no features on node types {', '.join(kind.name for kind in schema.node_types)}",
            rule=f"{' and '.join(reads_features)} predict what features say",
            remedy="ingest node tables that have a features column, or set objective.tasks=[degree]",
        )
    reads_edges = [name for name in config.tasks if name in ("degree", "partition")]
    if reads_edges and not schema.relations:
        raise BadInput(
            f"objective.tasks={list(config.tasks)}",
            "no relations",
            rule=f"{' and '.join(reads_edges)} predict what edges say, so the graph needs some",
            remedy="ingest an edge table, or leave the task out",
        )
    if reads_features and config.num_averages > encoder_config.num_hops:
        raise BadInput(
            f"objective.num_averages={config.num_averages}",
            f"an encoder that reads {encoder_config.num_hops} hops",
            rule="features are averaged over hops that the encoder reads",
            remedy=f"set objective.num_averages to at most {encoder_config.num_hops}",
        )
