"""Training from tiers: the bytes of a run in memory, budgets that cannot work refused, and what `plan` foresees."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.checkpoint import list_checkpoints
from service.forecast import Forecast, forecast
from service.forecast_table import forecast_tables
from service.pretraining import pretrain
from service.run_file import load_run_file
from service.streaming import fits_in_memory
from storage.errors import BadInput
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_run, small_store
from tests.processes import hopstream, result_of

TRAINING = {"epochs": 2}
TIERS: dict[str, dict[str, Any]] = {
    "packed": {"host_cache_bytes": 0, "packing": "always"},
    "everything at once": {"host_cache_bytes": "1KiB", "topology": "disk", "device_cache_bytes": "2KiB"},
}


def weights(folder: Path, *, name: str, tiers: dict[str, Any]) -> bytes:
    """The weights after training."""
    tiers = {"scratch_folder": str(folder / "scratch"), **tiers}
    run = load_run_file(str(small_run(folder, name=name, training=TRAINING, tiers=tiers)))
    assert pretrain(run, progress=NoProgress()).state == "finished"
    place = Place(run.run.storage).child(name).child("checkpoints")
    newest = list_checkpoints(Place(run.run.storage).child(name))[-1]
    return place.child(newest).read_bytes("model.safetensors")


def test_a_run_from_tiers_ends_with_the_bytes_of_a_run_in_memory(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    plain = load_run_file(str(small_run(tmp_path, training=TRAINING)))
    assert fits_in_memory(plain, Store.open(str(store)), memory_bytes=8 << 30)
    expected = weights(tmp_path, name="plain", tiers={})
    for number, (what, tiers) in enumerate(TIERS.items()):
        assert weights(tmp_path, name=f"tiers-{number}", tiers=tiers) == expected, what
    assert [path for path in (tmp_path / "scratch").iterdir() if path.name != "disk_speed.json"] == []


def test_a_budget_in_which_nothing_works_is_refused_with_what_would(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path, tiers={"memory_bytes": "100MiB"})))
    with pytest.raises(BadInput, match=r"tiers\.memory_bytes=104857600: at least \d+ bytes are needed"):
        pretrain(run, progress=NoProgress())
    done = hopstream("pretrain", str(small_run(tmp_path, tiers={"memory_bytes": "100MiB"})))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_plan_looks_ahead_and_writes_nothing_of_the_run(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = str(small_run(tmp_path, training={"epochs": 60}, tiers={"host_cache_bytes": "1KiB"}))  # ends by itself early
    found = result_of("plan", run, f"tiers.scratch_folder={tmp_path / 'scratch'}")
    assert not (tmp_path / "runs").exists()
    assert found["bottleneck"] in found["stage_seconds"]
    assert found["seconds_per_step"] == max(found["stage_seconds"].values())
    assert [outlook["change"] for outlook in found["outlooks"]] == ["as it is", "one GiB more"]
    assert found["nodes_by_hop"] == sorted(found["nodes_by_hop"])
    assert found["one_more_hop"]["nodes"] >= found["nodes_by_hop"][-1]
    assert found["happened"] is None
    low, high = found["compute_range"]
    assert low <= found["stage_seconds"]["compute"] <= high


def shown(report: Forecast) -> str:
    """What `plan` prints."""
    console = Console(width=200)
    with console.capture() as captured:
        console.print(forecast_tables(report))
    return captured.get()


def test_plan_shows_what_happened_beside_what_it_foresaw(tmp_path: Path) -> None:
    small_store(tmp_path)
    run = load_run_file(str(small_run(tmp_path, training={"epochs": 1})))
    assert pretrain(run, progress=NoProgress()).state == "finished"
    found = shown(forecast(run, progress=NoProgress()))
    assert "all in memory" in found
    assert "what it took, 5 steps" in found


def test_plan_looks_at_an_encoder_that_reads_no_neighbours(tmp_path: Path) -> None:
    small_store(tmp_path)
    words = ("sampling.fanouts=[]", "encoder.name=mlp", "objective.decoder=mlp", "encoder.norm=none")
    tiers = {"host_cache_bytes": "1KiB", "scratch_folder": str(tmp_path / "scratch")}
    run = load_run_file(str(small_run(tmp_path, tiers=tiers)), overrides=words)
    found = forecast(run, progress=NoProgress())
    assert not found.in_memory
    assert found.one_more_hop is None


def test_plan_shows_hits_and_disk_bytes_of_a_streamed_run(tmp_path: Path) -> None:
    small_store(tmp_path)
    tiers = {"host_cache_bytes": "1KiB", "packing": "never", "scratch_folder": str(tmp_path / "scratch")}
    sampling = {"fanouts": [1, 1, 1], "seeds_per_step": 8}  # batches that leave most of the table on disk
    run = load_run_file(str(small_run(tmp_path, training={"epochs": 2}, tiers=tiers, sampling=sampling)))
    summary = pretrain(run, progress=NoProgress()).summary
    assert summary is not None
    assert summary.compute_seconds <= summary.seconds
    stream = summary.stream
    assert stream is not None
    assert stream.static_hits + stream.dynamic_hits == summary.host_hits < stream.requests
    assert stream.disk_bytes > 0
    found = forecast(run, progress=NoProgress())
    assert found.happened is not None
    assert found.happened.steps == summary.steps
    assert found.happened.static_hit_rate == stream.static_hits / stream.requests
    assert set(found.happened.stage_seconds) == {"compute", "sample", "serve", "read"}
    assert "disk bytes a step" in shown(found).split("what it took, ")[1]


@pytest.mark.soak
def test_sampling_actors_end_with_the_bytes_of_sampling_threads(tmp_path: Path) -> None:
    small_store(tmp_path)
    expected = weights(tmp_path, name="threads", tiers={})
    run = load_run_file(str(small_run(tmp_path, name="actors", training=TRAINING)), overrides=["workers.samplers=2"])
    assert pretrain(run, progress=NoProgress()).state == "finished"
    place = Place(run.run.storage).child("actors")
    newest = place.child("checkpoints").child(list_checkpoints(place)[-1])
    assert newest.read_bytes("model.safetensors") == expected
