"""Law: kill -9 at any point of training, then the same command: the same final bytes, with one worker on a CPU."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data import small_run, small_store
from tests.processes import result_of, start, wait_until

TOTAL_STEPS = 40
SLOW = {"epochs": 8, "checkpoint_every_steps": 2}
"""enough steps that a kill falls among them"""


def final_weights(folder: Path, name: str) -> bytes:
    newest = max((folder / "runs" / name / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["step"] == TOTAL_STEPS
    return (newest / "model.safetensors").read_bytes()


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, TOTAL_STEPS + 1))
    return [row["loss"] for row in rows]


def kill_when_checkpoint(run: Path, folder: Path, name: str, step: int) -> None:
    """Start training and kill -9 it as soon as a checkpoint of `step` or later exists."""
    process = start("pretrain", str(run))
    checkpoints = folder / "runs" / name / "checkpoints"

    def reached() -> bool:
        return any(
            int(path.parent.name.removeprefix("step-")) >= step for path in checkpoints.glob("step-*/manifest.json")
        )

    kill_group(process, reached)


def kill_group(process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    wait_until(condition, process=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    small_store(tmp_path)
    result_of("pretrain", str(small_run(tmp_path, name="whole", training=SLOW)))
    killed = small_run(tmp_path, name="killed", training=SLOW)
    for step in (2, 14):
        kill_when_checkpoint(killed, tmp_path, "killed", step)
    status = result_of("pretrain", str(killed))
    assert status["state"] == "finished"
    assert status["attempts"] == 3
    assert final_weights(tmp_path, "killed") == final_weights(tmp_path, "whole")
    assert losses(tmp_path, "killed") == losses(tmp_path, "whole")
    again = result_of("pretrain", str(killed))
    assert again["step"] == TOTAL_STEPS


@pytest.mark.soak
def test_many_random_kills_change_nothing(tmp_path: Path) -> None:
    small_store(tmp_path)
    result_of("pretrain", str(small_run(tmp_path, name="whole", training=SLOW)))
    choose = random.Random(5)
    killed = small_run(tmp_path, name="killed", training=SLOW)
    for _ in range(8):
        process = start("pretrain", str(killed))
        try:
            process.communicate(timeout=choose.uniform(2.0, 9.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert result_of("pretrain", str(killed))["state"] == "finished"
    assert final_weights(tmp_path, "killed") == final_weights(tmp_path, "whole")
    assert losses(tmp_path, "killed") == losses(tmp_path, "whole")
    leftovers = [path for path in (tmp_path / "runs" / "killed").rglob("*") if "partial" in path.name]
    assert leftovers == []
