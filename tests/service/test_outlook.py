"""What `plan` says of disk and reads is of a step, which is several batches where gradients are accumulated."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from service.forecast import forecast
from service.group import Group
from service.outlook import outlooks_of
from service.preparation import prepare
from service.run_file import RunFile, load_run_file
from service.tier_budget import planned_stream
from storage.progress import NoProgress
from tests.data import small_run, small_store


def run_of(folder: Path, **training: int) -> RunFile:
    """A run whose batches read a part of the features, which do not fit: 75 batches an epoch, 150 in all."""
    small_store(folder)
    tiers = {"host_cache_bytes": "1KiB", "packing": "never", "scratch_folder": str(folder / "scratch")}
    sampling = {"fanouts": [2, 2, 2], "seeds_per_step": 4}
    return load_run_file(str(small_run(folder, sampling=sampling, tiers=tiers, training={"epochs": 2, **training})))


def test_disk_bytes_and_seconds_of_a_step_are_those_of_its_batches(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    prepared = prepare(run, group=Group(), state=None)
    with ExitStack() as opened:
        found = planned_stream(
            prepared.store, run, order=prepared.order, ranks=(0,), world_size=1, opened=opened, num_steps=150
        )
        one, several = (
            outlooks_of(found, packing="never", batches_per_step=number, progress=NoProgress())[0]
            for number in (1.0, 2.5)
        )
    assert one.disk_bytes_per_step > 0
    assert several.disk_bytes_per_step == pytest.approx(2.5 * one.disk_bytes_per_step)
    assert several.read_seconds_per_step == pytest.approx(2.5 * one.read_seconds_per_step)
    assert several.dynamic_hit_rate == one.dynamic_hit_rate


def test_plan_counts_all_batches_of_a_step_once(tmp_path: Path) -> None:
    run = run_of(tmp_path, accumulate=4)
    report = forecast(run, progress=NoProgress())
    assert report.total_steps == 38  # of 4 batches, the last of an epoch of 3
    assert report.stage_seconds["read"] == report.outlooks[0].read_seconds_per_step
    plain = forecast(
        load_run_file(str(tmp_path / "small.yaml"), overrides=["training.accumulate=1"]), progress=NoProgress()
    )
    disk_bytes = plain.outlooks[0].disk_bytes_per_step
    assert disk_bytes > 0
    assert report.outlooks[0].disk_bytes_per_step == pytest.approx(150 / 38 * disk_bytes)
