"""What a training step is expected to take of memory, beside what autograd is seen to keep."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sampling.batch import MiniBatch
from sampling.batch_size import BatchSize
from service.group import Group
from service.model import build_model
from service.noise import Noise
from service.run_file import RunFile, parse_run_text
from service.tier_budget import step_bytes
from tests.service.batches import homogeneous, make_batch

GRAPH = homogeneous(num_nodes=600)


def run_of(**encoder: Any) -> RunFile:
    words = [f"encoder.{key}={value}" for key, value in encoder.items()]
    text = "{run: {name: r}, data: {store: s}, encoder: {name: sage, hidden_dim: 32, num_layers: 3}, objective: {"
    return parse_run_text(f"{text}name: graphmae, decoder: gcn}}}}", place="run.yaml", overrides=words)


def batch_of(run: RunFile) -> MiniBatch:
    num_hops = run.encoder.num_hops + run.objective.reach
    return make_batch(GRAPH, GRAPH.all_seeds()[:60], num_hops=num_hops, dtype=torch.float32)


def expected_bytes(run: RunFile) -> int:
    batch = batch_of(run)
    known = (*(float(hop.num_targets) for hop in batch.hops), float(batch.node_id.shape[0]))
    return step_bytes(run, BatchSize(num_nodes=known[-1], num_edges=0.0, rows=(), seen=(), nodes_by_hop=known))


def kept_bytes(run: RunFile) -> int:
    """Floating tensors, each once, that a forward pass keeps for the way back, beside weights and features."""
    model = build_model(run, GRAPH.schema, group=Group())
    batch = batch_of(run)
    known = [*model.parameters(), *(table for table in batch.features if table is not None)]
    addresses = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.untyped_storage().data_ptr() not in addresses:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(batch, Noise(3))
    assert out.count > 0
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("jumping", ["concat", "max", "mean"])
@pytest.mark.parametrize("residual", ["none", "pre"])
def test_what_joined_layers_add_to_a_step_is_counted(residual: str, jumping: str) -> None:
    plain = run_of(residual=residual, norm="layer")
    joined = run_of(residual=residual, norm="layer", jumping=jumping)
    added = kept_bytes(joined) - kept_bytes(plain)
    counted = expected_bytes(joined) - expected_bytes(plain)
    print(f"{residual}, {jumping}: {added} kept, {counted} counted")
    assert counted >= added
    if jumping == "concat":
        assert 0 < counted <= 4 * added


@pytest.mark.parametrize("encoder", [{}, {"name": "mlp"}, {"name": "mlp", "jumping": "concat"}, {"norm": "batch"}])
def test_a_step_is_expected_to_take_what_it_keeps(encoder: dict[str, Any]) -> None:
    run = run_of(**encoder)
    assert expected_bytes(run) >= kept_bytes(run)
