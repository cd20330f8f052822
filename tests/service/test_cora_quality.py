"""What the shipped recipe is worth on Cora: one seed with a margin; the mean of five is a benchmark."""

import pytest

from tests.benchmarks.quality import measure
from tests.benchmarks.record import arguments
from tests.data import real_graph


@pytest.mark.soak
def test_one_seed_of_the_cora_recipe_beats_the_random_encoder_and_reaches_81() -> None:
    figures = measure(real_graph("cora"), num_seeds=1, options=arguments("", small="").parse_args(["--json"]))
    assert figures["cora.graphmae.probe"] >= 81.0
    assert figures["cora.graphmae.minus_random_init"] >= 1.0
