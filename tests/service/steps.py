"""Steps of training on one small batch: through the training loop's own step, and without it."""

import torch

from sampling.batch import MiniBatch
from service.group import Group
from service.model import Model, build_model
from service.noise import Noise
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


def losses_of_one_batch(model: Model, batch: MiniBatch, *, noise: Noise, learning_rate: float = 0.01) -> list[float]:
    """The mean loss before each of 40 steps of Adam, all under the same noise."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(40):
        out = model(batch, noise)
        optimizer.zero_grad()
        (out.loss_sum / out.count).backward()
        optimizer.step()
        losses.append((out.loss_sum / out.count).item())
    return losses
