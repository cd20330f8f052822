"""Checkpoints: what was saved comes back, bit for bit, or is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from service.checkpoint import (
    FILES,
    FOLDER,
    FORMAT,
    TrainingState,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    remove_old_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from storage.errors import BadInput, DamagedStore
from storage.place import Place


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def state(step: int) -> TrainingState:
    return TrainingState(step=step, generation=1, generation_xxh64="0" * 16, seed=0, loss=0.5)


def save(place: Place, step: int) -> str:
    model, optimizer = trained()
    return save_checkpoint(place, state=state(step), model=model, optimizer=optimizer)


@pytest.mark.parametrize("url", ["{}", "memory://checkpoint-test"])
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path, url: str) -> None:
    place = Place(url.format(tmp_path))
    model, optimizer = trained()
    name = save_checkpoint(place, state=state(12), model=model, optimizer=optimizer)
    assert list_checkpoints(place) == [name]
    loaded = load_checkpoint(place, name)
    assert loaded.state == state(12)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.model[key], value)
    other = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    other.load_state_dict(loaded.model)
    restored = torch.optim.AdamW(other.parameters(), lr=0.1)
    restore_optimizer(other, restored, loaded.optimizer)
    x = torch.randn(4, 5)
    for network, engine in ((model, optimizer), (other, restored)):
        network(x).square().sum().backward()
        engine.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_anywhere_is_detected_and_the_file_named(tmp_path: Path, file: str) -> None:
    name = save(Place(str(tmp_path)), 1)
    path = tmp_path / FOLDER / name / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(DamagedStore, match=file):
        load_checkpoint(Place(str(tmp_path)), name)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": {}}', b"\xff\xfe"])
def test_a_broken_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    name = save(Place(str(tmp_path)), 1)
    (tmp_path / FOLDER / name / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedStore):
        load_checkpoint(Place(str(tmp_path)), name)


def test_a_checkpoint_of_another_format_is_refused_and_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    name = save(Place(str(tmp_path)), 1)
    path = tmp_path / FOLDER / name / "manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', '"format": 1'))
    with pytest.raises(BadInput, match=r"format 1: this program reads checkpoints of format") as caught:
        load_checkpoint(Place(str(tmp_path)), name)
    assert not isinstance(caught.value, DamagedStore)


def test_a_checkpoint_that_would_run_code_is_only_bytes(tmp_path: Path) -> None:
    import pickle

    import xxhash

    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(marker)!r}, 'w').close()",))

    place = Place(str(tmp_path))
    name = save(place, 1)
    folder = tmp_path / FOLDER / name
    poison = pickle.dumps(Evil())
    (folder / "model.safetensors").write_bytes(poison)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["xxh64"] = xxhash.xxh64_hexdigest(poison)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedStore, match="unreadable"):
        load_checkpoint(place, name)
    assert not marker.exists()


def test_a_folder_without_a_manifest_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    names = [save(place, step) for step in (3, 20, 100)]
    assert list_checkpoints(place) == names
    (tmp_path / FOLDER / names[1] / "manifest.json").unlink()
    assert list_checkpoints(place) == [names[0], names[2]]
    remove_old_checkpoints(place, saved=names[2], keep=1)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [names[2]]


def test_names_sort_by_step() -> None:
    steps = [9, 10, 99, 100, 10**9]
    assert sorted(map(checkpoint_name, reversed(steps))) == [checkpoint_name(step) for step in steps]


def test_tensors_of_another_model_are_refused() -> None:
    model, optimizer = trained()
    with pytest.raises(BadInput, match="belongs to a parameter"):
        restore_optimizer(model, optimizer, {"nothing.weight/exp_avg": torch.zeros(1)})


def test_restored_tensors_are_not_those_of_the_checkpoint() -> None:
    model, optimizer = trained()
    tensors = optimizer_tensors(model, optimizer)
    before = {key: value.clone() for key, value in tensors.items()}
    other, restored = trained()
    restore_optimizer(other, restored, tensors)
    for slots in restored.state.values():
        for value in slots.values():
            value.add_(1.0)
    assert all(torch.equal(tensors[key], value) for key, value in before.items())
