"""The `distill` section of a run file: the student that serves without a graph, and how it learns from its teacher."""

from typing import Literal

from pydantic import Field

from service.finetune_section import Name
from service.training_section import HARMLESS, Section


class DistillSection(Section):
    """An MLP on a node's own features, which learns what the encoder made of its neighbourhood."""

    name: Name = Field("first", description="Name of the result, in the run's folder distilled/; it is resumed by it.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the first weights, the order of rows and those held out.")
    target: Literal["embeddings", "labels"] = Field(
        "embeddings",
        description="What is learned: the run's embeddings as `embed` wrote them, or the class probabilities of the "
        "classifier finetune.name.",
    )
    node_type: str | None = Field(
        None, description="Node type whose embeddings are learned; unset for the one with features."
    )
    loss: Literal["mse", "cosine"] = Field(
        "mse",
        description="Of embeddings: squared error as a share of their variance, or 1 - cosine; of labels it is the "
        "cross-entropy.",
    )
    num_layers: int = Field(3, ge=1, description="Linear maps of the student, with ReLU between them.")
    hidden_dim: int = Field(512, ge=1, description="Columns between them.")
    epochs: int = Field(100, ge=1, description="Passes over the rows at most.")
    patience: int = Field(
        20,
        ge=1,
        description="Passes in a row that are no better on held-out rows and end it: by their loss, of labels first by "
        "the share of rows in which student and teacher agree.",
    )
    held_out: float = Field(0.05, gt=0, lt=1, description="Share of nodes, 65536 at most, that are not learned from.")
    rows_per_step: int = Field(512, ge=1, description="Nodes of a mini-batch.")
    rows_per_buffer: int = Field(
        65536, ge=1, description="Rows in memory that batches are drawn from; read in pieces of 4096 in a drawn order."
    )
    learning_rate: float = Field(1e-3, gt=0, description="At the start; it falls along a cosine over the epochs.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    checkpoint_every: int = Field(10, ge=1, description="Epochs between checkpoints.", json_schema_extra=HARMLESS)

    @property
    def binding(self) -> dict[str, object]:
        """What a result keeps: every key but its name and those that cannot change it."""
        return self.model_dump(mode="json", exclude={"name", "checkpoint_every"})
