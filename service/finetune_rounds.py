"""Rounds of training, each judged on validation nodes: the best one counts, and too many without a better one end it.

    <folder>/rounds-00012.safetensors   weights, best weights so far and optimiser after 12 rounds
    <folder>/state.json                 what they belong to, the figures of every round, the file above with its XXH64;
                                        written last

All that is random in a round is keyed by its number, so there is nothing else to keep. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from service.checkpoint import optimizer_tensors
from storage.errors import BadInput, DamagedStore
from storage.place import Place

STATE = "state.json"
PREFIX = "rounds-"
FORMAT = 1


@dataclass(frozen=True)
class Round:
    """The figures of one round."""

    loss: float
    """mean over its training steps"""
    val_loss: float
    """mean over the validation nodes"""
    val_accuracy: float | None = None
    """percent of them; None where there are no classes"""

    def beats(self, other: "Round") -> bool:
        """Whether it is the better one: by accuracy, and by the loss where accuracies are equal or there are none."""
        return (self.val_accuracy or 0.0, -self.val_loss) > (other.val_accuracy or 0.0, -other.val_loss)


def best_round(rounds: Sequence[Round]) -> int:
    """Index of the best round, the first of equals."""
    best = 0
    for number, found in enumerate(rounds):
        if found.beats(rounds[best]):
            best = number
    return best


def has_stopped(rounds: Sequence[Round], *, patience: int) -> bool:
    """Whether the last `patience` rounds were no better than one before."""
    return bool(rounds) and len(rounds) - 1 - best_round(rounds) >= patience


@dataclass(frozen=True)
class SavedRounds:
    """What a folder holds; tensors on the CPU."""

    rounds: tuple[Round, ...]
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    """the model's, after the best round"""
    optimizer: dict[str, Tensor]


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights and buffers as they are now, on the CPU."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}


def save_rounds(
    place: Place,
    *,
    binding: Mapping[str, Any],
    rounds: Sequence[Round],
    model: nn.Module,
    best: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write where training stands; whatever moment it is cut short, the folder holds this state or the one before.

    Args:
        binding: what the rounds depend on, as JSON has it; `load_rounds` refuses another.
    """
    name = f"{PREFIX}{len(rounds):05d}.safetensors"
    parts = {"model": copy_state(model), "best": best, "optimizer": optimizer_tensors(model, optimizer)}
    data = format_tensors({f"{part}/{key}": value for part, tensors in parts.items() for key, value in tensors.items()})
    place.write_bytes(name, data)
    state = {
        "format": FORMAT,
        "binding": dict(binding),
        "rounds": [asdict(found) for found in rounds],
        "file": name,
        "xxh64": xxhash.xxh64_hexdigest(data),
    }
    place.write_bytes(STATE, json.dumps(state, indent=1).encode())
    for other in place.names():
        if other.startswith(PREFIX) and other != name:
            place.remove(other)


def drop_tensors(place: Place) -> None:
    """Remove what only going on needs; figures and what they belong to stay."""
    for name in place.names():
        if name.startswith(PREFIX):
            place.remove(name)


def read_rounds(place: Place, *, binding: Mapping[str, Any], section: str) -> tuple[Round, ...]:
    """The figures of the rounds done in a folder, none where it is new.

    Args:
        section: of the run file that names the folder, for messages.

    Raises BadInput when they belong to other settings, weights or data; DamagedStore for a file that is no state.
    """
    state = _read_state(place)
    if state is None:
        return ()
    began = state["binding"]
    keys = [key for key in {**began, **binding} if began.get(key) != binding.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {began.get(key)} -> {binding.get(key)}" for key in keys)
        raise BadInput(
            place.url,
            f"began with others: {changes}",
            rule="a result keeps the settings, the weights and the data that it began with",
            remedy=f"undo the change, or set {section}.name to another name",
        )
    return tuple(Round(**found) for found in state["rounds"])


def load_rounds(place: Place, *, binding: Mapping[str, Any], section: str) -> SavedRounds | None:
    """Where training stands in a folder; None where it is new. Raises as `read_rounds`, also for damaged tensors."""
    rounds = read_rounds(place, binding=binding, section=section)
    state = _read_state(place)
    if state is None:
        return None
    name = str(state["file"])
    try:
        data = place.read_bytes(name)
    except FileNotFoundError:
        raise _damaged(place, name, "missing file") from None
    if xxhash.xxh64_hexdigest(data) != state["xxh64"]:
        raise _damaged(place, name, "bytes changed")
    try:
        tensors = parse_tensors(data)
    except (ValueError, SafetensorError) as error:
        raise _damaged(place, name, f"unreadable ({error})") from None
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for key, value in tensors.items():
        part, _, inner = key.partition("/")
        parts[part][inner] = value
    return SavedRounds(rounds=rounds, **parts)


def _read_state(place: Place) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads(place.read_bytes(STATE))
        if state["format"] != FORMAT:
            raise BadInput(
                place.full(STATE),
                f"format {state['format']}",
                rule=f"this program reads format {FORMAT}",
                remedy="use the program that wrote it, or choose another name",
            )
        return {key: state[key] for key in ("binding", "rounds", "file", "xxh64")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise _damaged(place, STATE, f"unreadable ({error})") from None


def _damaged(place: Place, name: str, found: str) -> DamagedStore:
    return DamagedStore(
        place.full(name), found, rule="a saved state is whole", remedy="remove its folder and begin anew"
    )
