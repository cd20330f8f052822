"""Encoders beyond the four plain convolutions, of two layers each, for the laws of ranks, exactness and embedding."""

from dataclasses import dataclass
from typing import Any, Literal

from service.encoders import EncoderConfig

DROPOUTS = {"feature_dropout": 0.2, "attention_dropout": 0.3, "edge_dropout": 0.2}


@dataclass(frozen=True)
class EncoderCase:
    """A setting of the encoder section."""

    settings: dict[str, Any]
    num_hops: int = 2
    """hops that the encoder reads"""
    decoder: Literal["sage", "gcn", "gat", "gin"] = "gat"
    """of graphmae"""

    def config(self, **more: Any) -> EncoderConfig:
        """The section with all that is random switched on; `more` where the encoder has a use for it."""
        used = {key: value for key, value in more.items() if key != "norm" or ":" not in self.settings["name"]}
        return EncoderConfig.model_validate(
            {"num_layers": 2, "hidden_dim": 8, "num_heads": 2, **DROPOUTS, **used, **self.settings}
        )


ENCODER_CASES = {
    "sage, mean of relations": EncoderCase({"name": "sage", "relation_weights": "mean"}, decoder="sage"),
    "sage, attention to relations": EncoderCase({"name": "sage", "relation_weights": "attention"}, decoder="sage"),
    "gcn, attention to relations": EncoderCase({"name": "gcn", "relation_weights": "attention"}, decoder="gcn"),
    "gat, attention to relations": EncoderCase({"name": "gat", "relation_weights": "attention"}),
    "gin, attention to relations": EncoderCase({"name": "gin", "relation_weights": "attention"}, decoder="gin"),
    "gin, mean of relations": EncoderCase({"name": "gin", "relation_weights": "mean"}, decoder="gin"),
    "sage, post-activation": EncoderCase({"name": "sage", "residual": "post"}),
    "gcn, pre-activation": EncoderCase({"name": "gcn", "residual": "pre"}),
    "gat, pre-activation, layers concatenated": EncoderCase({"name": "gat", "residual": "pre", "jumping": "concat"}),
    "sage, layers concatenated": EncoderCase({"name": "sage", "jumping": "concat"}),
    "gin, maximum of layers": EncoderCase({"name": "gin", "jumping": "max"}),
    "gcn, mean of layers": EncoderCase({"name": "gcn", "jumping": "mean", "residual": "post"}),
    "sgc": EncoderCase({"name": "sgc"}),
    "mlp": EncoderCase({"name": "mlp"}, num_hops=0),
    "mlp, pre-activation, layers concatenated": EncoderCase(
        {"name": "mlp", "residual": "pre", "jumping": "concat"}, num_hops=0
    ),
    "imported": EncoderCase({"name": "tests.service.own_encoders:MeanEncoder", "options": {"slope": 0.1}}),
    "imported, layers concatenated": EncoderCase(
        {"name": "tests.service.own_encoders:MeanEncoder", "jumping": "concat"}
    ),
}
