"""The shortest convex combination, against a grid over the simplex, the closed form of two, and what defines it."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from service.objectives.min_norm import TOLERANCE, min_norm_weights


def unit_rows(num_vectors: int, dim: int, *, seed: int) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(num_vectors, dim))
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize("num_vectors", [3, 4])
def test_no_point_of_a_grid_over_the_simplex_is_shorter(num_vectors: int, dim: int, seed: int) -> None:
    rows = unit_rows(num_vectors, dim, seed=seed)
    weights = min_norm_weights(rows @ rows.T)
    assert weights.min() >= 0.0
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    parts = 24
    grid = [point for point in product(range(parts + 1), repeat=num_vectors) if sum(point) == parts]
    shortest = np.square((np.array(grid) / parts) @ rows).sum(1).min()
    found = np.square(weights @ rows).sum()
    assert found <= shortest + 2.0 * TOLERANCE
    assert found >= shortest - (2.0 / parts) ** 2 * num_vectors - 2.0 * np.sqrt(found) * num_vectors / parts


@pytest.mark.parametrize("seed", range(8))
def test_two_vectors_have_the_closed_form(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 3)) * rng.uniform(0.3, 3.0, size=(2, 1))
    weight = np.clip((other - one) @ other / np.square(one - other).sum(), 0.0, 1.0)
    found = min_norm_weights(np.array([[one @ one, one @ other], [one @ other, other @ other]]))
    assert found == pytest.approx([weight, 1.0 - weight], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_combination_leads_downhill_for_every_vector(seed: int) -> None:
    rows = unit_rows(6, 10, seed=seed)
    shortest = min_norm_weights(rows @ rows.T) @ rows
    assert (rows @ shortest).min() >= shortest @ shortest - TOLERANCE


def test_equal_and_opposite_vectors_are_no_trouble() -> None:
    row = unit_rows(1, 5, seed=0)
    assert min_norm_weights(np.ones((3, 3))) == pytest.approx([1 / 3] * 3)
    opposite = np.concatenate([row, -row, row])
    assert np.abs(min_norm_weights(opposite @ opposite.T) @ opposite).max() < 1e-2
    assert min_norm_weights(np.full((2, 2), np.nan)).tolist() == [0.5, 0.5]
