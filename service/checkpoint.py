"""Checkpoints: what training needs to go on, as safetensors and JSON, manifest last.

    checkpoints/step-000000120/
        model.safetensors       weights and buffers of encoder and objective, rows learned by id with their state
        optimizer.safetensors   "<parameter>/<slot>" tensors of the optimiser
        state.json              step, store generation, seed, early stop: random numbers are keyed, so there is no RNG
                                state
        manifest.json           written last: bytes and XXH64 of each file; a folder without it is not a checkpoint

Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from service.early_stop import EarlyStopState
from service.probe_schedule import ProbeFigure
from storage.errors import BadInput, DamagedStore
from storage.place import Place

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
FORMAT = 2
REMEDY = "remove the folder; the checkpoint before it is used"


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: `step` steps are done."""

    step: int
    generation: int
    """store generation that the run trains on"""
    generation_xxh64: str
    """of that generation's file, by which a replaced store is noticed"""
    seed: int
    loss: float
    early_stop: EarlyStopState = field(default_factory=EarlyStopState)
    probe: ProbeFigure | None = None
    """of the validation probe that was under way; None where there was none but one of these very weights"""
    format: int = FORMAT

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TrainingState":
        """From what `asdict` made of it; TypeError for other fields."""
        probe = fields.get("probe")
        made = {
            "early_stop": EarlyStopState(**fields.get("early_stop", {})),
            "probe": None if probe is None else ProbeFigure(**probe),
        }
        return cls(**{**fields, **made})


@dataclass(frozen=True)
class WholeCheckpoint:
    """A checkpoint whose every byte is the one written."""

    name: str
    state: TrainingState
    contents: dict[str, bytes]
    """of each of its files"""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: tensors on the CPU."""

    state: TrainingState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def save_checkpoint(place: Place, *, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Write a checkpoint under the run's folder; returns its name. Each file is atomic, the manifest is last."""
    name = checkpoint_name(state.step)
    folder = place.child(FOLDER).child(name)
    contents = {
        "model.safetensors": format_tensors(
            {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        ),
        "optimizer.safetensors": format_tensors(optimizer_tensors(model, optimizer)),
        "state.json": json.dumps(asdict(state)).encode(),
    }
    for file, data in contents.items():
        folder.write_bytes(file, data)
    sums = {file: {"bytes": len(data), "xxh64": xxhash.xxh64_hexdigest(data)} for file, data in contents.items()}
    folder.write_bytes(MANIFEST, json.dumps({"format": FORMAT, "files": sums}).encode())
    return name


def load_checkpoint(place: Place, name: str) -> Checkpoint:
    """Read and verify one checkpoint with its tensors; raises as `read_checkpoint`."""
    return parse_checkpoint(place, read_checkpoint(place, name))


def read_checkpoint(place: Place, name: str) -> WholeCheckpoint:
    """Read and verify one checkpoint, without making tensors of it.

    Raises DamagedStore when any byte of it is missing or wrong, BadInput when it has another format.
    """
    folder = place.child(FOLDER).child(name)
    try:
        manifest = json.loads(folder.read_bytes(MANIFEST))
        sums = manifest["files"]
        if manifest["format"] != FORMAT:
            raise BadInput(
                folder.full(MANIFEST),
                f"format {manifest['format']}",
                rule=f"this program reads checkpoints of format {FORMAT}",
                remedy="use the program that wrote it, or give the run another name",
            )
        contents: dict[str, bytes] = {}
        for file in FILES:
            contents[file] = folder.read_bytes(file)
            if xxhash.xxh64_hexdigest(contents[file]) != sums[file]["xxh64"]:
                raise DamagedStore(
                    folder.full(file), "bytes changed", rule="files match their checksums", remedy=REMEDY
                )
        return WholeCheckpoint(name, TrainingState.from_json(json.loads(contents["state.json"])), contents)
    except FileNotFoundError as error:
        raise DamagedStore(
            str(error.filename or folder.url), "missing file", rule="checkpoints are whole", remedy=REMEDY
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise _unreadable(folder, error) from None


def parse_checkpoint(place: Place, whole: WholeCheckpoint) -> Checkpoint:
    """The tensors of a checkpoint that was read from the run's folder `place`."""
    try:
        return Checkpoint(
            state=whole.state,
            model=parse_tensors(whole.contents["model.safetensors"]),
            optimizer=parse_tensors(whole.contents["optimizer.safetensors"]),
        )
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _unreadable(place.child(FOLDER).child(whole.name), error) from None


def newest_whole(place: Place) -> tuple[WholeCheckpoint | None, list[str]]:
    """The newest checkpoint of a run that is whole, and what is wrong with each newer one."""
    damaged: list[str] = []
    for name in reversed(list_checkpoints(place)):
        try:
            return read_checkpoint(place, name), damaged
        except DamagedStore as error:
            damaged.append(str(error))
    return None, damaged


def _unreadable(folder: Place, error: Exception) -> DamagedStore:
    return DamagedStore(folder.url, f"unreadable ({error})", rule="checkpoints are whole", remedy=REMEDY)


def list_checkpoints(place: Place) -> list[str]:
    """Names of the complete checkpoints of a run, oldest first; folders without a manifest do not count."""
    folder = place.child(FOLDER)
    return sorted(name for name in folder.names() if name.startswith("step-") and folder.exists(f"{name}/{MANIFEST}"))


def remove_old_checkpoints(place: Place, *, saved: str, keep: int, always: int | None = None) -> None:
    """Delete all but the checkpoint `saved` just now and the `keep` - 1 before it, and what killed saves left.

    The checkpoint of step `always` stays too, however old it gets.

    Whatever claims a later step was passed over as damaged when this training began, so it goes first. Of each
    folder the manifest goes first, so that a deletion cut short leaves no folder that looks whole.
    """
    folder = place.child(FOLDER)
    whole = [name for name in list_checkpoints(place) if name <= saved]
    kept = {*whole[-keep:], *(name for name in whole if always is not None and name == checkpoint_name(always))}
    for name in reversed(folder.names()):
        if name not in kept:
            if folder.exists(f"{name}/{MANIFEST}"):
                folder.remove(f"{name}/{MANIFEST}")
            folder.remove(name)


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps; names sort by step."""
    return f"step-{step:012d}"


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors as "<parameter>/<slot>"."""
    return {
        f"{name}/{slot}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back; the step counter stays on the CPU as torch keeps it."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        if name not in parameters:
            raise BadInput(
                "optimizer.safetensors",
                f"tensor {key}",
                rule="every tensor belongs to a parameter of the model",
                remedy="resume with the run file that wrote it",
            )
        parameter = parameters[name]
        device = torch.device("cpu") if slot == "step" else parameter.device
        optimizer.state[parameter][slot] = value.to(device, copy=True)  # `tensors` stay the caller's own
