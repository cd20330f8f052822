"""Runs with rows learned by id: resumed, continued on a store that has grown, embedded, planned, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from service.checkpoint import FOLDER, list_checkpoints, load_checkpoint
from service.encoders.id_embedding import initial_rows, table_bytes
from service.group import Group
from service.model import build_model
from service.pretraining import pretrain
from service.results import embed_run
from service.run_file import RunFile, load_run_file
from service.run_folder import run_place
from service.schema import GraphSchema
from storage.append import append
from storage.append_settings import AppendSettings
from storage.compact import compact
from storage.errors import BadInput
from storage.ingest import ingest
from storage.progress import NoProgress
from storage.store import Store
from tests.laws.test_embedding_exactness import full_batch
from tests.processes import result_of
from tests.service.batches import featureless
from tests.service.stores import user_ids, write_tables
from tests.service.test_early_stop import InterruptedAt

GRAPH = featureless()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a store of `GRAPH` in `store`."""
    ingest(write_tables(GRAPH, tmp_path / "tables", columns={}), out=str(tmp_path / "store"))
    return tmp_path


def run_of(folder: Path, name: str, *overrides: str) -> RunFile:
    document: dict[str, Any] = {
        "run": {"name": name, "storage": str(folder / "runs"), "seed": 3},
        "data": {"store": str(folder / "store")},
        "sampling": {"fanouts": [2, 2], "seeds_per_step": 12},
        "encoder": {"name": "sage", "hidden_dim": 8, "norm": "batch", "id_embedding_dim": 6, "edge_dropout": 0.2},
        "objective": {"name": "bgrl", "predictor_dim": 6},
        "training": {"epochs": 3, "log_every_steps": 1, "checkpoint_every_steps": 4, "num_compute_threads": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_run_file(str(path), overrides=overrides)


def checkpoint_bytes(run: RunFile) -> dict[str, bytes]:
    place = run_place(run)
    newest = place.child(FOLDER).child(list_checkpoints(place)[-1])
    return {name: newest.read_bytes(name) for name in newest.names()}


def learned(run: RunFile) -> dict[str, torch.Tensor]:
    place = run_place(run)
    model = load_checkpoint(place, list_checkpoints(place)[-1]).model
    return {name.removeprefix("encoder.ids."): value for name, value in model.items() if ".ids." in name}


@pytest.mark.parametrize("interrupted_at", [2, 5, 9])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(folder: Path, interrupted_at: int) -> None:
    whole, cut = run_of(folder, "whole"), run_of(folder, "cut")
    assert pretrain(whole, progress=NoProgress()).step == 12
    with pytest.raises(KeyboardInterrupt):
        pretrain(cut, progress=InterruptedAt(interrupted_at))
    assert pretrain(cut, progress=NoProgress()).state == "finished"
    expected = checkpoint_bytes(whole)
    assert checkpoint_bytes(cut) == expected
    kept = learned(whole)
    assert sorted(kept) == sorted(
        f"{kind}.{part}" for kind in ("item", "user") for part in ("rows", "squares", "numbering")
    )
    assert not torch.equal(kept["user.rows"], initial_rows(0, 18, dim=6, seed=3))
    assert (kept["item.squares"] > 0).any()


@pytest.mark.parametrize("encoder", ["sage", "gat", "sgc", "mlp"])
def test_embedding_reads_the_learned_rows_and_equals_the_full_batch(
    folder: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fanouts = "[]" if encoder == "mlp" else "[2,2]"
    run = run_of(folder, "first", f"encoder.name={encoder}", f"sampling.fanouts={fanouts}")
    pretrain(run, progress=NoProgress())
    embed_run(run, store_url=None, out=None, progress=NoProgress())
    store = Store.open(str(folder / "store"))
    model = build_model(run, GraphSchema.from_store(store), group=Group())
    place = run_place(run)
    model.load_state_dict(load_checkpoint(place, list_checkpoints(place)[-1]).model)
    tables = learned(run)

    # the oracle looks rows up itself, by the users' ids: the store numbers nodes in an order of its own
    def with_rows(features: Any, node_type: Any, in_degree: Any, out_degree: Any) -> torch.Tensor:
        rows: list[torch.Tensor | None] = [None, None, None]
        for kind, name in ((0, "user"), (1, "item")):
            dense = torch.from_numpy(store.rows_of(name, pa.array(user_ids(GRAPH, kind))))
            rows[kind] = tables[f"{name}.rows"][dense][: int((node_type == kind).sum())]
        return type(model.encoder).input(model.encoder, features, node_type, in_degree, out_degree, rows)

    monkeypatch.setattr(model.encoder, "input", with_rows)  # for `full_batch`, whose ids ascend
    expected = full_batch(GRAPH, model.encoder)
    for number, kind in enumerate(GRAPH.schema.node_types):
        table = pq.read_table(folder / "runs" / "first" / "embeddings" / kind.name)
        found = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
        rows = np.array([found[name] for name in user_ids(GRAPH, number)], dtype=np.float32)
        np.testing.assert_allclose(rows, expected[number], rtol=2e-4, atol=2e-5)


def append_users(folder: Path, count: int) -> None:
    pq.write_table(pa.table({"id": list(range(count))}), folder / "users.parquet")
    append(AppendSettings(nodes={"user": str(folder / "users.parquet")}), out=str(folder / "store"))


def test_a_store_that_has_grown_is_trained_on_with_its_old_rows_and_new_ones(folder: Path) -> None:
    first = run_of(folder, "first")
    pretrain(first, progress=NoProgress())
    append_users(folder, 5)
    with pytest.raises(BadInput, match=r"learned rows of 18 nodes of type user, and 23 .*run\.continue_from"):
        embed_run(first, store_url=str(folder / "store"), out=str(folder / "out"), progress=NoProgress())
    origin = f"run.continue_from={folder / 'runs' / 'first'}"
    second = run_of(folder, "second", origin, "training.embedding_learning_rate=1e-30", "run.seed=8")
    pretrain(second, progress=NoProgress())
    old, new = learned(first)["user.rows"], learned(second)["user.rows"]
    assert torch.equal(new[:18], old)
    assert torch.equal(new[18:], initial_rows(0, 23, dim=6, seed=8)[18:])
    assert embed_run(second, store_url=None, out=None, progress=NoProgress()).rows == 43


def test_a_compacted_store_is_refused(folder: Path) -> None:
    first = run_of(folder, "first")
    pretrain(first, progress=NoProgress())
    append_users(folder, 5)
    compact(str(folder / "store"))
    second = run_of(folder, "second", f"run.continue_from={folder / 'runs' / 'first'}")
    with pytest.raises(BadInput, match=r"learned rows of 18 nodes of type user.*not over compact"):
        pretrain(second, progress=NoProgress())
    assert not (folder / "runs" / "second" / FOLDER).exists()


def test_rows_that_do_not_fit_are_refused_with_what_would(folder: Path) -> None:
    run = run_of(folder, "large", "encoder.id_embedding_dim=20000000", "tiers.memory_bytes=2GiB")
    with pytest.raises(BadInput, match=r"4883 MiB are needed for 32 learned rows.*set encoder\.id_embedding_dim to at"):
        pretrain(run, progress=NoProgress())
    assert not (folder / "runs" / "large" / "run.yaml").exists()
    schema = GraphSchema.from_store(Store.open(str(folder / "store")))
    assert table_bytes(run_of(folder, "small").encoder, schema) == 32 * 7 * 4


def test_plan_and_replay_step_the_rows_too(folder: Path) -> None:
    run_of(folder, "first")
    path = str(folder / "first.yaml")
    streamed = "tiers.host_cache_bytes=0"
    assert result_of("plan", path, streamed)["total_steps"] == 12
    status = result_of("pretrain", path, streamed)
    assert status["summary"]["num_parameters"] > 32 * 6
    report = result_of("replay", path, "--step", "5")
    names = [check["name"] for check in report["gradients"]]
    assert names[-2:] == ["learned rows of user", "learned rows of item"]
    lines = (folder / "runs" / "first" / "metrics.jsonl").read_text().splitlines()
    line = json.loads(lines[4])
    assert (report["loss"], report["grad_norm"]) == pytest.approx((line["loss"], line["grad_norm"]), rel=1e-6)
