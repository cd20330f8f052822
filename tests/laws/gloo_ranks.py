"""Ranks of a gloo group as processes of their own: a test module that is run as a program, once for each rank.

The test starts them with `run_ranks`; each of them joins with `joined_rank` and leaves its tensors in the test's
folder, where it also met the others.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.group import Group
from tests.data import ROOT
from tests.processes import environment

LIMIT_SECONDS = 400
"""a guard against hangs"""


def run_ranks(module: str, *, world_size: int, folder: Path) -> None:
    """Run `python -m module world_size folder rank` for every rank, to the end of all."""
    program = [sys.executable, "-m", module, str(world_size), str(folder)]
    ranks = [
        subprocess.Popen([*program, str(rank)], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(world_size)
    ]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=LIMIT_SECONDS)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()


@contextmanager
def joined_rank(words: list[str]) -> Iterator[tuple[Group, Path]]:
    """The group of all ranks, and the folder, inside a program that `run_ranks` started with `words`."""
    world_size, folder, rank = int(words[1]), Path(words[2]), int(words[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    group = Group.from_torch(local_rank=rank % 2)  # as on two machines
    assert (group.rank, group.world_size, group.local_rank) == (rank, world_size, rank % 2)
    yield group, folder
    group.barrier()  # a rank that leaves while another is at work can end it without a word
    dist.destroy_process_group()


def leave(result: Mapping[str, Tensor], *, folder: Path, name: object, rank: int) -> None:
    """Write what a rank found in a case, for `left_by`."""
    save_file({key: tensor.contiguous() for key, tensor in result.items()}, folder / f"{name}.{rank}.safetensors")


def left_by(*, folder: Path, name: object, rank: int) -> dict[str, Tensor]:
    """What a rank has left of a case."""
    return load_file(folder / f"{name}.{rank}.safetensors")
