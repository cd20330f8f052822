"""The partition of a run: found once, kept beside the run, and given to the tasks that predict it.

    <run>/partition/<num_parts>.npy     int32 [N]: part of every node by global id, with page sums beside it
    <run>/partition/<num_parts>.json    what it was made from; written last

One rank finds it and the others read it, so all have the same. It is used again by a run that goes on, as long as it
was made from the same generation of the store by the same rules; else it is made anew.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from service.group import Group
from service.objectives.partition_task import NodeParts, PartitionTask
from service.partition import VERSION, partition
from service.run_file import RunFile
from service.run_folder import run_place
from storage.arrays import read_array, write_array
from storage.errors import DamagedStore
from storage.place import Place
from storage.progress import Progress
from storage.schema import FileInfo
from storage.store import Store

FOLDER = "partition"


class KeptPartition(BaseModel):
    """What a kept partition was made from, and its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(description="of the rules by which parts are found")
    num_parts: int = Field(description="parts asked for")
    generation: int = Field(description="of the store")
    generation_xxh64: str = Field(description="of that generation's file")
    parts: FileInfo = Field(description="int32 [N]: part of every node by global id, -1 for none")


def give_partition(
    model: nn.Module, run: RunFile, *, store: Store, group: Group, progress: Progress, is_kept: bool = True
) -> None:
    """Tell every partition task of `model` the parts of `store`; every rank of `group` must call it.

    Args:
        is_kept: whether a partition that is not there yet is written into the run's folder; several ranks need that.

    Raises as `service.partition.partition`.
    """
    assert is_kept or group.world_size == 1
    found: dict[int, NodeParts] = {}
    for task in model.modules():
        if not isinstance(task, PartitionTask):
            continue
        if task.num_parts not in found:
            part = parts_of(
                run_place(run), store, num_parts=task.num_parts, group=group, progress=progress, is_kept=is_kept
            )
            found[task.num_parts] = NodeParts(
                part=torch.from_numpy(part), type_offsets=torch.from_numpy(store.type_offsets)
            )
        task.parts = found[task.num_parts]


def parts_of(
    place: Place, store: Store, *, num_parts: int, group: Group, progress: Progress, is_kept: bool
) -> NDArray[np.int32]:
    """[N]: the kept partition where it fits, or a new one; `place` is the run's folder."""
    part = None
    if group.rank == 0:
        part = read_partition(place, store, num_parts=num_parts)
        if part is None:
            part = partition(store, num_parts=num_parts, progress=progress)
            progress.note(summary(part))
            if is_kept:
                keep_partition(place, store, part, num_parts=num_parts)
    group.barrier()
    if part is None:
        part = read_partition(place, store, num_parts=num_parts)
        assert part is not None, "rank 0 has just written it"
    return part


def read_partition(place: Place, store: Store, *, num_parts: int) -> NDArray[np.int32] | None:
    """What is kept in a run's folder; None when there is nothing, it is of something else, or it is damaged."""
    try:
        kept = KeptPartition.model_validate_json(place.read_bytes(f"{FOLDER}/{num_parts}.json"))
        wanted = (VERSION, num_parts, store.generation.generation, store.generation_xxh64)
        if (kept.version, kept.num_parts, kept.generation, kept.generation_xxh64) != wanted:
            return None
        part: NDArray[np.int32] = read_array(place, kept.parts)
    except (FileNotFoundError, ValidationError, DamagedStore):
        return None
    return part


def keep_partition(place: Place, store: Store, part: NDArray[np.int32], *, num_parts: int) -> None:
    """Write a partition into a run's folder, the file that names it last."""
    kept = KeptPartition(
        version=VERSION,
        num_parts=num_parts,
        generation=store.generation.generation,
        generation_xxh64=store.generation_xxh64,
        parts=write_array(place, f"{FOLDER}/{num_parts}.npy", part),
    )
    place.write_bytes(f"{FOLDER}/{num_parts}.json", kept.model_dump_json(indent=2).encode())


def summary(part: NDArray[np.int32]) -> str:
    """How many parts there are and how large, and how many nodes are in none."""
    sizes = np.unique(part[part >= 0], return_counts=True)[1]
    share = 1.0 - float(sizes.sum()) / part.shape[0]
    return f"partition: {sizes.shape[0]} parts of {sizes.min()} to {sizes.max()} nodes, {share:.1%} of nodes in none"
