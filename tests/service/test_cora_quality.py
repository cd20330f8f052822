"""What the shipped recipe is worth on Cora: one seed with a margin; the mean of five is a benchmark."""

from pathlib import Path

import pytest

from tests.benchmarks.quality import ingest, measure_row
from tests.data import real_graph


@pytest.mark.soak
def test_one_seed_of_the_cora_recipe_beats_the_random_encoder_and_reaches_81(tmp_path: Path) -> None:
    ingest("cora", data=real_graph("cora").parent, out=tmp_path / "cora")
    row = measure_row("cora", "graphmae", 0, folder=tmp_path)
    assert row["probe"] >= 81.0
    assert row["probe"] >= row["random_init"] + 1.0
