"""The `finetune` section of a run file: how a pretrained encoder learns from labels."""

from typing import Annotated

from pydantic import Field

from service.labelled_rows import SplitSource
from service.training_section import HARMLESS, Section

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]
"""of a result inside a run's folder"""


class FinetuneSection(Section):
    """Training on labels, from the run's newest checkpoint; the run itself does not depend on it."""

    name: Name = Field("first", description="Name of the result, in the run's folder finetuned/; it is resumed by it.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the labels drawn, the head's first weights, order and noise.")
    node_type: str | None = Field(None, description="Node type to classify; unset for the one with labels.")
    split: SplitSource = Field(
        "auto", description="The data's own split, or a random one by run.seed; auto: the data's where it has one."
    )
    train_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes a random split trains on.")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of labelled nodes that choose the best weights.")
    max_val_rows: int = Field(5000, ge=1, description="Validation nodes used at most, drawn by run.seed.")
    labels_per_class: int | None = Field(
        None,
        ge=1,
        description="Labels of each class to train on, drawn among the training nodes; a class with fewer gives all it "
        "has; unset for all.",
    )
    freeze: bool = Field(False, description="Train the head alone and leave the encoder as it is.")
    epochs: int = Field(100, ge=1, description="Passes over the training nodes at most.")
    validate_every: int = Field(
        1, ge=1, description="Passes between two looks at the validation nodes; epochs are rounded up to a multiple."
    )
    patience: int = Field(20, ge=1, description="Such looks in a row without improvement that end it.")
    seeds_per_step: int = Field(256, ge=1, description="Labelled nodes of a mini-batch.")
    learning_rate: float = Field(0.01, gt=0, description="Of the head.")
    encoder_learning_rate: float = Field(0.001, gt=0, description="Of the encoder.")
    weight_decay: float = Field(0.0005, ge=0, description="Weight decay of AdamW.")
    checkpoint_every: int = Field(
        10, ge=1, description="Looks at the validation nodes between checkpoints.", json_schema_extra=HARMLESS
    )

    @property
    def num_rounds(self) -> int:
        """Looks at the validation nodes at most, each behind `validate_every` passes."""
        return -(-self.epochs // self.validate_every)

    @property
    def binding(self) -> dict[str, object]:
        """What a result keeps: every key but its name and those that cannot change it."""
        return self.model_dump(mode="json", exclude={"name", "checkpoint_every"})
