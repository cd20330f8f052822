"""Normal numbers from words agree with the inverse normal distribution, tails included."""

import numpy as np
import pytest
from scipy import stats

from sampling.keys import draw
from sampling.normals import normal


def test_words_become_the_quantiles_of_the_normal_distribution() -> None:
    shares = [2.0**-53, 1e-12, 1e-6, 0.001, 0.074, 0.076, 0.3, 0.5, 0.7, 0.924, 0.926, 0.999999]
    for share in shares:
        word = int(share * 2**53) << 11
        exact = stats.norm.ppf(((word >> 11) + 0.5) / 2**53)
        assert normal(np.uint64(word)) == pytest.approx(exact, rel=1e-12, abs=1e-12)


def test_a_larger_word_never_gives_a_smaller_number() -> None:
    words = np.sort(np.array([draw(np.uint64(3), number) for number in range(5000)], dtype=np.uint64))
    numbers = np.array([normal(word) for word in words])
    assert (np.diff(numbers) >= 0).all()
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
