"""Steps of training on one small batch, through the training loop's own step."""

import torch

from service.group import Group
from service.model import build_model
from service.run_file import parse_run_text
from service.step import build_optimizer, take_step
from tests.service.batches import heterogeneous, make_batch


def losses_of_training(objective: str, *, precision: str, num_steps: int, encoder: str = "norm: batch") -> list[float]:
    """The loss before each of `num_steps` steps with `objective: {...}` on a graph of three types."""
    graph = heterogeneous()
    run = parse_run_text(
        f"""
        run: {{name: r}}
        data: {{store: s}}
        encoder: {{name: sage, hidden_dim: 16, {encoder}}}
        objective: {{{objective}}}
        training: {{learning_rate: 0.01, precision: {precision}}}
        """,
        place="run.yaml",
        overrides=(),
    )
    model = build_model(run, graph.schema, group=Group())
    batch = make_batch(graph, graph.all_seeds(), num_hops=2 + model.objective.reach, dtype=torch.float32)
    optimizer = build_optimizer(run, model)
    losses = []
    for done in range(1, num_steps + 1):
        found = take_step(run, [batch], step=done, forward=model, model=model, optimizer=optimizer, group=Group())
        model.objective.after_step(model.encoder, done=done, total_steps=num_steps)
        losses.append(found.loss)
    return losses
