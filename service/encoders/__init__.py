"""Encoders: node features and sampled neighbourhoods to hidden states."""

from service.encoders.base import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.encoders.registry import make_encoder

__all__ = ["Encoder", "EncoderConfig", "Nodes", "make_encoder"]
