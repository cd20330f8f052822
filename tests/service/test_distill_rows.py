"""The rows a student learns from: each once an epoch, none that is held out; a folded student is the trained one."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from service.distill_rows import (
    PIECE_ROWS,
    Moments,
    MomentSums,
    buffers,
    held_out_places,
    steps_of_buffer,
)
from service.distill_section import DistillSection
from service.distill_student import StudentLoss, fold, make_student


@pytest.mark.parametrize(("num_rows", "rows_per_buffer"), [(300, 65536), (3 * PIECE_ROWS + 17, 2 * PIECE_ROWS), (2, 1)])
def test_an_epoch_is_every_row_once_but_those_held_out(num_rows: int, rows_per_buffer: int) -> None:
    section = DistillSection(rows_per_buffer=rows_per_buffer, rows_per_step=100)
    held_out = held_out_places(num_rows, section)
    assert len(held_out) == max(1, round(0.05 * num_rows))
    orders = []
    for epoch in range(2):
        steps = []
        for number, places in enumerate(buffers(num_rows, section, held_out=held_out, epoch=epoch)):
            assert places.tolist() == sorted(places.tolist())
            assert len(places) <= max(PIECE_ROWS, rows_per_buffer)
            for chosen in steps_of_buffer(len(places), section, epoch=epoch, number=number):
                assert 1 <= len(chosen) <= 100
                steps.append(places[chosen.numpy()])
        seen = np.concatenate(steps)
        assert sorted([*seen.tolist(), *held_out.tolist()]) == list(range(num_rows))
        orders.append(seen.tolist())
    assert num_rows < 10 or orders[0] != orders[1]


def test_a_table_without_its_moments_has_mean_0_and_variance_1() -> None:
    table = np.random.default_rng(1).normal([3.0, -40.0, 0.0], [2.0, 9.0, 0.5], size=(500, 3)).astype(np.float32)
    sums = MomentSums(3)
    for start in range(0, 500, 70):
        sums.add(table[start : start + 70])
    found = sums.moments()
    scaled = (table - found.mean) / found.scale
    np.testing.assert_allclose(scaled.mean(0), 0.0, atol=1e-6)
    assert np.square(scaled).mean() == pytest.approx(1.0)
    constant = MomentSums(1)
    constant.add(np.full((4, 1), 7.0, dtype=np.float32))
    assert (constant.moments().mean[0], constant.moments().scale) == (7.0, 1.0)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("kind", ["mse", "cosine", "labels"])
def test_a_folded_student_gives_the_rows_whose_loss_was_taken(num_layers: int, kind: str) -> None:
    rng = np.random.default_rng(2)
    section = DistillSection(num_layers=num_layers, hidden_dim=8, loss="cosine" if kind == "cosine" else "mse")
    inputs = Moments(mean=rng.normal(size=5), scale=3.0)
    outputs = None if kind == "labels" else Moments(mean=rng.normal(size=4), scale=0.5)
    student = make_student(5, 4, section)
    loss = StudentLoss(student, section, inputs=inputs, outputs=outputs)
    x_NF = torch.from_numpy(rng.normal(size=(30, 5))).float()
    y_ND = torch.from_numpy(rng.normal(size=(30, 4))).float()
    if kind == "labels":
        y_ND = y_ND.softmax(1)
    with torch.no_grad():
        found, agreed = loss(x_NF, y_ND)
        fold(student, inputs=inputs, outputs=outputs)
        rows_ND = student(x_NF)
    expected = {
        "mse": (rows_ND - y_ND).square().mean() / 0.25,
        "cosine": (1.0 - cosine_similarity(rows_ND, y_ND, dim=1)).mean(),
        "labels": cross_entropy(rows_ND, y_ND) if kind == "labels" else None,
    }[kind]
    assert expected is not None
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert int(agreed) == int((rows_ND.argmax(1) == y_ND.argmax(1)).sum())


def test_a_student_is_made_by_its_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = make_student(5, 4, DistillSection(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    other, third = make_student(5, 4, DistillSection(seed=1)), make_student(5, 4, DistillSection(seed=2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), third.parameters(), strict=True))
