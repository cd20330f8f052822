"""Encoders of users' own, named by import path.

    encoder:
      name: mypackage.mymodule:MyEncoder
      options: {alpha: 0.1}

The class is an nn.Module made as `MyEncoder(in_dim=, hidden_dim=, num_layers=, schema=, **options)`, with one method

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor

which gives [hop.num_targets, hidden_dim] from h [hop.num_sources, columns of layer `number`]: in_dim of layer 0,
hidden_dim of the others. It is called layer by layer in training as in embedding, so a row may depend on its own
node and that node's edges alone. Norms, activations and residuals are its own; the input projection, feature_dropout,
edge_dropout and jumping of the encoder section hold. Random numbers and batch statistics of its own (nn.Dropout,
nn.BatchNorm1d) depend on the rank, so that several workers no longer equal one.
"""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from sampling.batch import Hop
from service.encoders.base import Encoder
from service.encoders.config import EncoderConfig
from service.encoders.hop_graph import HopGraph
from service.encoders.nodes import Nodes
from service.group import Group
from service.noise import Noise
from service.schema import GraphSchema
from storage.errors import BadInput

SIGNATURE = "(in_dim=, hidden_dim=, num_layers=, schema=, **options)"


class ImportedEncoder(Encoder):
    """The layers of a user's class between hopstream's input and output."""

    def __init__(self, config: EncoderConfig, *, schema: GraphSchema) -> None:
        """Raises BadInput where the class is not there, cannot be made, or has no `layer`."""
        super().__init__(config, schema=schema)
        self.module = make_module(config, in_dim=self.layer_dims[0], schema=schema)

    def layer(
        self,
        index: int,
        h: Tensor,
        hop: Hop,
        nodes: Nodes,
        noise: Noise | None = None,
        num_seeds: int = 0,
        *,
        group: Group | None = None,
        view: int = 0,
    ) -> Tensor:
        """See `Encoder.layer`; BadInput when the class gives another shape."""
        x = self.drop_input(h[: hop.num_sources], nodes, noise, view=view, layer=index)
        layer: Any = self.module.layer
        out = layer(index, x, HopGraph(hop, nodes, schema=self.schema))
        expected = (hop.num_targets, self.config.hidden_dim)
        if not isinstance(out, Tensor) or tuple(out.shape) != expected:
            found = str(tuple(out.shape)) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise refusal(
                self.config,
                f"layer {index} gave {found} for {hop.num_targets} targets",
                rule=f"it gives a tensor [targets, hidden_dim], here {expected}",
                remedy="mend its method layer, or set encoder.hidden_dim",
            )
        if index == self.num_layers - 1:
            out = out + self._nothing().to(out.dtype)
        return out

    def _nothing(self) -> Tensor:
        """0 that hangs on every trained parameter: all ranks reduce all gradients, also where no edge or seed is."""
        parts = [weight.reshape(-1)[:0].sum() for weight in self.module.parameters() if weight.requires_grad]
        return torch.stack(parts).sum() if parts else torch.zeros(())


def make_module(config: EncoderConfig, *, in_dim: int, schema: GraphSchema) -> nn.Module:
    """The module that `config.name` names; its weights come from torch's global generator.

    Raises BadInput for a module or class that is not there, options that it does not take, and what is no encoder.
    """
    made = find_class(config)
    try:
        module = made(
            in_dim=in_dim,
            hidden_dim=config.hidden_dim,
            num_layers=config.num_layers,
            schema=schema,
            **config.options,
        )
    except TypeError as error:
        raise refusal(
            config, first_line(error), rule=f"it is made as {SIGNATURE}", remedy="mend it or encoder.options"
        ) from error
    if not isinstance(module, nn.Module) or not callable(getattr(module, "layer", None)):
        raise refusal(
            config,
            f"a {type(module).__name__} without a method layer"
            if isinstance(module, nn.Module)
            else type(module).__name__,
            rule="an encoder is a torch.nn.Module with a method layer(number, h, hop)",
            remedy="README, Your own encoder, has an example",
        )
    return module


def find_class(config: EncoderConfig) -> Any:
    """What stands at an import path; BadInput when there is no such module or name, or its import fails."""
    module_name, _, attribute = config.name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise refusal(
            config,
            f"import of {module_name} fails ({type(error).__name__}: {first_line(error)})",
            rule="it can be imported on every worker",
            remedy="install it, or put its folder on PYTHONPATH",
        ) from error
    if not hasattr(module, attribute):
        raise refusal(
            config,
            f"module {module_name} has no {attribute}",
            rule="a path is package.module:Class",
            remedy="check the name",
        )
    return getattr(module, attribute)


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return (str(error).strip().splitlines() or [""])[0]


def refusal(config: EncoderConfig, found: str, *, rule: str, remedy: str) -> BadInput:
    """The error that names the encoder by its path."""
    return BadInput(f"encoder.name={config.name}", found, rule=rule, remedy=remedy)
