"""The `training` section of a run file, and what all sections have in common."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from service.early_stop import EarlyStopConfig
from service.probe_schedule import ValidationProbeConfig

HARMLESS: dict[str, JsonValue] = {"harmless": True}
"""json_schema_extra of a field or section that may differ between a run and its resumption"""


class Section(BaseModel):
    """A part of the run file; frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainingSection(Section):
    """The optimisation."""

    epochs: int = Field(10, ge=1, description="Passes over the seeds.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps, if sooner.")
    optimizer: Literal["adam", "adamw"] = Field("adamw", description="adam adds weight decay to the gradient.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    embedding_learning_rate: float = Field(
        0.05,
        gt=0,
        description="Peak learning rate of rows learned by id (encoder.id_embedding_dim), by row-wise Adagrad; it has "
        "the schedule's shape. They have no weight decay.",
    )
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    schedule: Literal["constant", "cosine", "infinite"] = Field(
        "cosine",
        description="Shape after the warm-up; infinite: cosine to a constant rate, which later runs can go on from, "
        "and an exponential end.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    cooldown_steps: int = Field(0, ge=0, description="Infinite: steps of the cosine from peak to constant rate.")
    constant_share: float = Field(0.5, gt=0, le=1, description="Infinite: the constant rate as a share of the peak.")
    anneal_steps: int = Field(0, ge=0, description="Infinite: last steps of the run, in which the rate falls.")
    final_share: float = Field(0.1, gt=0, le=1, description="Infinite: what is left of the constant rate at the end.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Global batches of a step, one after another, with one reduction over workers; like one batch that "
        "many times as large where the loss is a sum over seeds.",
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest gradient norm; unset for no clipping.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on GPUs, float32 on CPUs."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU where there is one.", json_schema_extra=HARMLESS
    )
    num_compute_threads: int | None = Field(
        None, ge=1, description="Torch threads a worker; unset shares the cores.", json_schema_extra=HARMLESS
    )
    checkpoint_every_steps: int = Field(100, ge=1, description="Steps between checkpoints.", json_schema_extra=HARMLESS)
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept.", json_schema_extra=HARMLESS)
    log_every_steps: int = Field(
        10, ge=1, description="Steps between lines of metrics.jsonl.", json_schema_extra=HARMLESS
    )
    warn_std: float = Field(
        0.05,
        ge=0,
        description="Warn of a collapse below this std_mean; it is 1 where columns share the variance.",
        json_schema_extra=HARMLESS,
    )
    warn_rank: float = Field(
        1.5, ge=0, description="Warn of a collapse below this effective_rank.", json_schema_extra=HARMLESS
    )
    early_stop: EarlyStopConfig = EarlyStopConfig()
    probe: ValidationProbeConfig = ValidationProbeConfig()

    @model_validator(mode="after")
    def _stops_by_what_there_is(self) -> Self:
        if self.early_stop.by == "probe" and self.probe.every_steps is None:
            raise ValueError("early_stop.by=probe, probe.every_steps unset: there is no figure to stop by; set it")
        return self
