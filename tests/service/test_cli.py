"""The command line: the whole path on small tables, exit codes, JSON, refusals without tracebacks."""

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from service.cli import app
from service.command_line import named_tables
from storage.errors import BadInput
from tests.data import small_run, small_store, write_tables
from tests.processes import hopstream, start, wait_until

COMMANDS = (
    "demo", "ingest", "delete", "refresh", "compact", "gc", "inspect", "plan", "pretrain", "embed", "evaluate",
    "holdout", "replay", "finetune", "distill",
)  # fmt: skip


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_tables_in_embeddings_out(tmp_path: Path) -> None:
    write_tables(tmp_path)
    code, out, _ = call(
        "ingest", "--nodes", f"{tmp_path}/nodes.parquet", "--edges", f"{tmp_path}/edges.parquet", "--undirected",
        "--out", f"{tmp_path}/store", "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["node_types"][0]["num_nodes"] == 300

    code, out, _ = call("inspect", f"{tmp_path}/store", "--json")
    assert code == 0
    inspected = json.loads(out)
    assert inspected["node_types"][0]["feature_dim"] == 16
    assert inspected["relations"][0]["reverse_of"] == "node:to:node"

    run = str(small_run(tmp_path))
    code, out, _ = call("pretrain", run, "--json")
    assert code == 0
    status = json.loads(out)
    assert (status["state"], status["step"]) == ("finished", 20)
    assert status["summary"]["loss"] > 0

    code, out, _ = call("embed", run, "--json")
    assert code == 0
    embedded = json.loads(out)
    parts = sorted(Path(embedded["out"]).glob("node/*.parquet"))
    ids = [identifier for part in parts for identifier in pq.read_table(part)["id"].to_pylist()]
    assert sorted(ids) == [10 * number for number in range(300)]

    code, out, _ = call("evaluate", run, "--json")
    assert code == 0
    results = json.loads(out)["node_types"][0]["results"]
    assert [result["rows"] for result in results] == ["trained", "raw", "sgc", "random_init"]
    assert all(0 <= result["accuracy"] <= 100 for result in results)

    code, out, _ = call("evaluate", run)
    assert code == 0
    assert "trained" in out


def test_embedding_another_store_of_the_same_schema(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path))
    assert call("pretrain", run, "--json")[0] == 0
    write_tables(tmp_path / "other", num_nodes=120, num_edges=500)
    ingest = [
        "ingest",
        "--nodes",
        f"{tmp_path}/other/nodes.parquet",
        "--edges",
        f"{tmp_path}/other/edges.parquet",
    ]
    assert call(*ingest, "--undirected", "--out", f"{tmp_path}/other/store")[0] == 0
    code, _, error = call("embed", run, "--store", f"{tmp_path}/other/store")
    assert code == 2
    assert "--out" in error
    code, out, _ = call("embed", run, "--store", f"{tmp_path}/other/store", "--out", f"{tmp_path}/other/e", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 120


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_examples(command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert "Examples" in out
    assert f"hopstream {command}" in out


def test_all_commands_are_listed() -> None:
    out = call("--help")[1]
    assert all(command in out for command in COMMANDS)
    callbacks = [command.callback for command in app.registered_commands]
    assert sorted(callback.__name__ for callback in callbacks if callback) == sorted(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("inspect", "{tmp}/nothing"), "nothing"),
        (("pretrain", "{tmp}/nothing.yaml"), "no such file"),
        (("embed", "{run}"), "no checkpoint"),
        (("pretrain", "{run}", "training.epoch=1"), "training.epochs"),
        (("pretrain", "{run}", "sampling.fanouts=[3]"), "need 3"),
        (("pretrain", "{run}", "data.seed_types=[user]"), "user"),
        (("pretrain", "{run}", "data.store={tmp}/nothing"), "nothing"),
        (("ingest", "--nodes", "{tmp}/nodes.parquet", "--edges", "{tmp}/no.p", "--out", "{tmp}/s2"), "no.p"),
        (
            ("ingest", "--nodes", "{tmp}/nodes.parquet", "--edges", "a:b:c={tmp}/edges.parquet", "--out", "{tmp}/s2"),
            "node",
        ),
        (
            ("ingest", "--nodes", "{tmp}/nodes.parquet", "--edges", "{tmp}/edges.parquet", "--dangling", "keep",
             "--out", "{tmp}/s2"),
            "--dangling",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path)
    words = [word.format(tmp=tmp_path, run=run) for word in arguments]
    code, _, error = call(*words)
    assert code == 2
    assert part in error
    assert "Traceback" not in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    code, out, _ = call(*words, "--json")
    assert code == 2
    assert part in json.loads(out)["error"]


def test_a_diverged_run_fails_with_exit_code_1_and_says_what_to_do(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"learning_rate": 1e30})
    code, _, error = call("pretrain", str(run))
    assert code == 1
    assert "training.learning_rate" in error
    assert "Traceback" not in error
    assert json.loads((tmp_path / "runs" / "small" / "state.json").read_text())["state"] == "failed"


def test_ctrl_c_ends_cleanly_and_the_same_command_goes_on(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"epochs": 10_000})
    process = start("pretrain", str(run))
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("*/manifest.json")), process=process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    state = json.loads((tmp_path / "runs" / "small" / "state.json").read_text())
    assert state["state"] == "interrupted"
    assert not (tmp_path / "runs" / "small" / "lease.json").exists()


def test_a_second_start_of_a_living_run_is_refused(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = small_run(tmp_path, training={"epochs": 10_000})
    process = start("pretrain", str(run))
    try:
        lease = tmp_path / "runs" / "small" / "lease.json"
        wait_until(lease.exists, process=process)
        second = hopstream("pretrain", str(run))
        assert second.returncode == 2
        assert "one process works on a run at a time" in second.stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_types_and_relations_are_named_before_the_url() -> None:
    parsed = named_tables(["user=s3://b/u=1/*.parquet", "item=i.parquet"], option="--nodes", default="node")
    assert parsed == {"user": "s3://b/u=1/*.parquet", "item": "i.parquet"}
    assert named_tables(["s3://b/a=1/x.parquet"], option="--nodes", default="node") == {"node": "s3://b/a=1/x.parquet"}
    assert named_tables(["u:reads:i=r.parquet"], option="--edges", default="n:to:n") == {"u:reads:i": "r.parquet"}
    with pytest.raises(BadInput, match="node twice"):
        named_tables(["a.parquet", "b.parquet"], option="--nodes", default="node")


def test_the_run_folder_holds_the_resolved_run_file(tmp_path: Path) -> None:
    small_store(tmp_path)
    assert call("pretrain", str(small_run(tmp_path)), "training.epochs=1", "--json")[0] == 0
    stored = yaml.safe_load((tmp_path / "runs" / "small" / "run.yaml").read_text())
    assert stored["training"]["epochs"] == 1
    assert stored["training"]["optimizer"] == "adamw"
