"""Mini-batches in shared memory: written there by the feeder, described in a small JSON text, read there by a rank.

    share   batch -> its tensors in shared memory, their places and the batch's other fields as JSON values
    found   those JSON values -> the batch, over the same memory

Tensors that are in shared memory already, as features are that were served into it, stay where they are; the others
are copied behind each other into a range of their own. A description only ever names tensors and the classes of a
mini-batch, so reading one runs no code of whoever wrote it.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sampling.batch import Hop, MiniBatch, SeedPairs
from sampling.shared_memory import DTYPES, MappedMemory, SharedMemory

ALIGNMENT = 64
CLASSES: dict[str, type] = {kind.__name__: kind for kind in (MiniBatch, Hop, SeedPairs)}
"""what a description may consist of; every field is a tensor, a plain value, one of these, or a tuple of such"""


@dataclass(frozen=True, eq=False)
class SharedBatch:
    """A batch on its way to a rank."""

    description: dict[str, Any]
    held: tuple[Tensor, ...]
    """its memory; to be kept until the rank has no more use for the batch"""


def share(batch: MiniBatch, memory: SharedMemory) -> SharedBatch:
    """Put a batch into shared memory."""
    tensors: list[Tensor] = []
    parts = _described(batch, tensors)
    offsets = [memory.offset_of(tensor) for tensor in tensors]
    elsewhere = [number for number, offset in enumerate(offsets) if offset is None]
    room = memory.empty(sum(_aligned(tensors[number].nbytes) for number in elsewhere), 1, np.uint8)
    begin = memory.offset_of(room) or 0
    at = 0
    for number in elsewhere:
        tensor, offsets[number] = tensors[number], begin + at
        room.numpy()[at : at + tensor.nbytes, 0] = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
        at += _aligned(tensor.nbytes)
    places = [[offset, str(tensor.dtype), list(tensor.shape)] for offset, tensor in zip(offsets, tensors, strict=True)]
    assert all(str(tensor.dtype) in DTYPES for tensor in tensors)
    held = [tensor for number, tensor in enumerate(tensors) if number not in elsewhere]
    return SharedBatch(description={"batch": parts, "tensors": places}, held=(room, *held))


def found(description: dict[str, Any], memory: MappedMemory) -> MiniBatch:
    """The batch that `share` described; its tensors are valid until the feeder is told that they are not needed."""
    tensors = [
        memory.tensor(offset=offset, dtype=dtype, shape=shape) for offset, dtype, shape in description["tensors"]
    ]
    batch = _rebuilt(description["batch"], tensors)
    assert isinstance(batch, MiniBatch)
    return batch


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """A value as JSON; a tensor by its number among `tensors`, to which it is added."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if is_dataclass(value):
        kind = type(value)
        assert CLASSES.get(kind.__name__) is kind, f"{kind.__name__} is missing in CLASSES"
        return {kind.__name__: {one.name: _described(getattr(value, one.name), tensors) for one in fields(value)}}
    if isinstance(value, tuple):
        return [_described(one, tensors) for one in value]
    assert value is None or isinstance(value, bool | int | float | str), f"a {type(value).__name__} in a batch"
    return value


def _rebuilt(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_rebuilt(one, tensors) for one in value)
    if not isinstance(value, dict):
        return value
    ((name, inner),) = value.items()
    if name == "tensor":
        return tensors[inner]
    return CLASSES[name](**{key: _rebuilt(one, tensors) for key, one in inner.items()})


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
