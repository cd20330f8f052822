"""Embedding and evaluating a run: with the settings and the store that it was trained with, or not at all."""

import shutil
from pathlib import Path

import pytest

from service.evaluation_report import EvaluationReport
from service.pretraining import pretrain
from service.results import EmbeddingResult, embed_run, evaluate_run
from service.run_file import RunFile, load_run_file
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from tests.data import small_run, small_store, write_tables


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    """A finished run of a few steps."""
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path, training={"max_steps": 3})))
    pretrain(run, progress=NoProgress())
    return run


def changed(run: RunFile, folder: Path, *overrides: str) -> RunFile:
    path = folder / "changed.yaml"
    path.write_text(run.to_yaml())
    return load_run_file(str(path), overrides=overrides)


def embedded(run: RunFile, *, out: Path | None = None) -> EmbeddingResult:
    return embed_run(run, store_url=None, out=None if out is None else str(out), progress=NoProgress())


def evaluated(run: RunFile) -> EvaluationReport:
    return evaluate_run(run, embeddings=None, progress=NoProgress())


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("encoder.num_heads=4", "encoder.num_heads: 2 -> 4"),  # tensors of the same shapes
        ("encoder.hidden_dim=32", "encoder.hidden_dim: 16 -> 32"),
        ("run.seed=4", "run.seed: 3 -> 4"),
    ],
)
def test_settings_other_than_the_runs_are_refused_with_the_keys(
    run: RunFile, tmp_path: Path, override: str, difference: str
) -> None:
    embedded(run)
    other = changed(run, tmp_path, override)
    with pytest.raises(BadInput, match=f"run file changed: {difference}:"):
        embedded(other, out=tmp_path / "other")
    with pytest.raises(BadInput, match=f"run file changed: {difference}:"):
        evaluated(other)
    assert not (tmp_path / "other").exists()


def test_settings_that_cannot_alter_the_encoder_may_change(run: RunFile, tmp_path: Path) -> None:
    other = changed(run, tmp_path, "embedding.rows_per_chunk=70", "evaluation.num_splits=2", "workers.count=2")
    assert embedded(other).rows == 300
    report = evaluated(other)
    assert report.node_types[0].num_splits == 2


def ingest_others(folder: Path, store: Path, *, num_nodes: int) -> None:
    """A store of the same schema and generation number as that of `small_store`, of other tables."""
    write_tables(folder, num_nodes=num_nodes, num_edges=2000)
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / "edges.parquet")},
        undirected=True,
    )
    ingest(settings, out=str(store))


def test_a_store_that_was_replaced_is_refused_by_every_command(run: RunFile, tmp_path: Path) -> None:
    embedded(run)
    shutil.rmtree(tmp_path / "store")
    ingest_others(tmp_path / "other", tmp_path / "store", num_nodes=300)
    with pytest.raises(BadInput, match=r"store was replaced.*a checkpoint belongs to the store"):
        embedded(run, out=tmp_path / "out")
    with pytest.raises(BadInput, match=r"store was replaced.*an embedding belongs to the store"):
        evaluated(run)
    (newest,) = (tmp_path / "runs" / "small" / "checkpoints").iterdir()
    (tmp_path / "runs" / "small" / "state.json").unlink()  # the run is no longer known to have finished
    before = (newest / "manifest.json").read_bytes()
    with pytest.raises(BadInput, match="store was replaced"):
        pretrain(run, progress=NoProgress())
    assert (newest / "manifest.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_the_same_tables_ingested_again_are_the_same_store(run: RunFile, tmp_path: Path) -> None:
    embedded(run)
    shutil.rmtree(tmp_path / "store")
    small_store(tmp_path)
    embedded(run)
    evaluated(run)


def test_embeddings_of_another_store_are_probed_on_that_store(
    run: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest_others(tmp_path / "other", tmp_path / "other" / "store", num_nodes=120)
    monkeypatch.chdir(tmp_path)
    embed_run(run, store_url="other/store", out="other/e", progress=NoProgress())
    monkeypatch.chdir("/")
    report = evaluate_run(run, embeddings=str(tmp_path / "other" / "e"), progress=NoProgress())
    assert report.node_types[0].num_nodes == 120
