"""Gradient accumulation: like one batch that many times as large, and resumed at steps only."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sampling.batch import MiniBatch
from service.errors import TrainingFailed
from service.group import Group
from service.model import Model, build_model
from service.noise import Noise
from service.objectives import LossSum
from service.pretraining import pretrain
from service.run_file import RunFile, load_run_file, parse_run_text
from service.step import build_optimizer, find_gradient, take_step
from storage.progress import NoProgress
from tests.data import small_run, small_store
from tests.processes import result_of
from tests.service.batches import homogeneous, make_batch
from tests.service.test_early_stop import InterruptedAt

TEXT = """
run: {name: r}
data: {store: s}
encoder: {name: gcn, hidden_dim: 8}
objective:
  {name: bgrl, view_1: {edge_drop: 0, feature_drop: 0}, view_2: {edge_drop: 0, feature_drop: 0}}
"""
"""a loss that is a sum over seeds, without anything random"""


def build(*overrides: str) -> tuple[RunFile, Model]:
    run = parse_run_text(TEXT, place="run.yaml", overrides=overrides)
    return run, build_model(run, homogeneous().schema, group=Group()).double()


def batches_of(*cuts: int) -> list[MiniBatch]:
    graph = homogeneous()
    seeds = graph.all_seeds()[:23]
    bounds = [0, *cuts, len(seeds)]
    return [
        replace(make_batch(graph, seeds[first:last], num_hops=2), step=number)
        for number, (first, last) in enumerate(pairwise(bounds))
    ]


def gradient(run: RunFile, model: Model, batches: list[MiniBatch]) -> tuple[float, float, Tensor]:
    found = find_gradient(run, batches, num_batches=len(batches), forward=model, model=model, group=Group())
    parts = [parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None]
    return found.loss, found.norm, torch.cat(parts)


@pytest.mark.parametrize("cuts", [(11,), (4, 5, 19), (0, 23)])
@pytest.mark.parametrize("clip", ["null", "0.01"])
def test_batches_of_any_sizes_have_the_gradient_of_their_union(cuts: tuple[int, ...], clip: str) -> None:
    run, model = build(f"training.clip_norm={clip}")
    loss, norm, whole = gradient(run, model, batches_of())
    parts = gradient(run, model, batches_of(*cuts))
    assert parts[:2] == pytest.approx((loss, norm), rel=1e-12)
    assert float((parts[2] - whole).norm() / whole.norm()) < 1e-12


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_the_batch_whose_loss_is_not_finite_is_named(bad: int) -> None:
    run, model = build()

    def forward(batch: MiniBatch, noise: Noise) -> LossSum:
        out: LossSum = model(batch, noise)
        return replace(out, loss_sum=out.loss_sum * (float("nan") if batch.step == bad else 1.0))

    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(TrainingFailed, match=rf"loss is nan at epoch 0, batch {bad}, step 7 of the run.*--step 7`"):
        take_step(
            run, batches_of(5, 12), step=7, num_batches=3, forward=forward, model=model,
            optimizer=build_optimizer(run, model), group=Group(),
        )  # fmt: skip
    assert all(torch.equal(old, new) for old, new in zip(before, model.state_dict().values(), strict=True))


def metrics(folder: Path, name: str) -> list[dict[str, float]]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder: Path, name: str) -> bytes:
    newest = max((folder / "runs" / name / "checkpoints").iterdir())
    return (newest / "model.safetensors").read_bytes()


def test_a_run_that_accumulates_trains_as_one_with_larger_batches(tmp_path: Path) -> None:
    small_store(tmp_path)
    still = {"edge_drop": 0.0, "feature_drop": 0.0}
    common: dict[str, dict[str, Any]] = {
        "encoder": {"name": "gcn", "norm": "none", "feature_dropout": 0.0},
        "objective": {"name": "bgrl", "mask_rate": None, "replace_rate": None, "view_1": still, "view_2": still},
    }
    rows = {}
    for name, size, accumulate in (("many", 32, 4), ("large", 128, 1)):
        path = small_run(
            tmp_path, name=name, sampling={"fanouts": [1000, 1000], "seeds_per_step": size},
            training={"accumulate": accumulate}, **common,
        )  # fmt: skip
        text = "\n".join(line for line in path.read_text().splitlines() if "null" not in line)
        path.write_text(text)
        assert pretrain(load_run_file(str(path)), progress=NoProgress()).state == "finished"
        rows[name] = metrics(tmp_path, name)
    assert [row["step"] for row in rows["many"]] == list(range(1, 13))  # 300 seeds: 3 steps an epoch
    for key in ("step", "epoch", "seeds", "learning_rate"):
        assert [row[key] for row in rows["many"]] == [row[key] for row in rows["large"]]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in rows["many"]] == pytest.approx([row[key] for row in rows["large"]], rel=1e-3)


def test_a_run_that_accumulates_ends_with_the_same_bytes_when_it_was_interrupted(tmp_path: Path) -> None:
    small_store(tmp_path)
    runs = [load_run_file(str(small_run(tmp_path, name=name, training={"accumulate": 2}))) for name in ("whole", "cut")]
    status = pretrain(runs[0], progress=NoProgress())
    assert (status.step, status.total_steps) == (12, 12)  # 5 batches an epoch: 3 steps
    with pytest.raises(KeyboardInterrupt):
        pretrain(runs[1], progress=InterruptedAt(8))
    assert pretrain(runs[1], progress=NoProgress()).attempts == 2
    assert weights(tmp_path, "cut") == weights(tmp_path, "whole")
    assert [row["loss"] for row in metrics(tmp_path, "cut")] == [row["loss"] for row in metrics(tmp_path, "whole")]
    first = metrics(tmp_path, "whole")[:3]
    assert [row["seeds"] for row in first] == [128, 128, 44]


def test_plan_counts_steps_and_times_all_their_batches(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path, training={"accumulate": 2}))
    assert result_of("plan", run)["total_steps"] == 12
