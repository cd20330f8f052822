"""Message passing on DGL's fused kernels: g-SpMM and g-SDDMM (Wang et al., "Deep Graph Library", 2019, section 3).

The only file that imports DGL, and only when a graph first needs it.
"""

import functools
import importlib
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from storage.errors import BadInput


@functools.cache
def load_dgl() -> Any:
    """The dgl package; its import raises what it likes, e.g. where it was built for another torch."""
    before = os.environ.get("DGLBACKEND")
    # without it the import prints a line and writes a file into the home folder
    os.environ["DGLBACKEND"] = "pytorch"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("dgl")
    finally:
        if before is None:
            del os.environ["DGLBACKEND"]
        else:
            os.environ["DGLBACKEND"] = before


@functools.cache
def why_not(device_type: str) -> str:
    """Why DGL does not run on this kind of device ("cpu", "cuda"), in one line; empty where it does.

    Whatever goes wrong in it counts as a reason, but for a lack of memory: a run that can do without DGL must not
    end by it.
    """
    if device_type not in ("cpu", "cuda"):
        return f"it has no kernels for {device_type}"
    try:
        load_dgl().graph((torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))).to(device_type)
    except MemoryError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ""


def is_available(device_type: str) -> bool:
    """Whether DGL loads here and has kernels for this kind of device (its usual build has them for "cpu" only)."""
    return not why_not(device_type)


def check(kernels: str) -> None:
    """Raise BadInput with the reason where "dgl" is demanded and DGL does not load."""
    if kernels == "dgl" and (reason := why_not("cpu")):
        raise BadInput(
            "encoder.kernels",
            f"dgl, which does not load here ({reason})",
            rule="DGL must be installed and load beside this torch",
            remedy="install dgl==1.1.3 on Python 3.11, or use kernels=auto or torch, which need no DGL",
        )


def make_block(indptr: Tensor, source: Tensor, num_sources: int) -> Any:
    """A DGL block with int32 ids over these edges (edge ids in CSC order)."""
    edge = torch.arange(source.shape[0], dtype=source.dtype, device=source.device)
    return load_dgl().create_block(
        ("csc", (indptr, source, edge)),
        num_src_nodes=num_sources,
        num_dst_nodes=indptr.shape[0] - 1,
        idtype=torch.int32,
        device=source.device,
    )


def sum_rows(block: Any, x_SD: Tensor) -> Tensor:
    """[T, D]: sum of the sources' rows."""
    return _tensor(load_dgl().ops.copy_u_sum(block, x_SD))


def weighted_sum_rows(block: Any, x_SD: Tensor, weight_E: Tensor) -> Tensor:
    """[T, D]: sum of weight times the sources' rows."""
    return _tensor(load_dgl().ops.u_mul_e_sum(block, x_SD, weight_E[:, None]))


def max_rows(block: Any, x_SD: Tensor) -> Tensor:
    """[T, D]: maximum over the sources' rows; minus infinity where there is none."""
    return _tensor(load_dgl().ops.copy_u_max(block, x_SD))


def attend_rows(block: Any, x_SHD: Tensor, attention_EH: Tensor) -> Tensor:
    """[T, H, D]: sum of attention times the sources' rows, head by head."""
    return _tensor(load_dgl().ops.u_mul_e_sum(block, x_SHD, attention_EH[:, :, None]))


def score_edges(block: Any, source_SH: Tensor, target_TH: Tensor) -> Tensor:
    """[E, H]: source score plus target score of each edge."""
    return _tensor(load_dgl().ops.u_add_v(block, source_SH, target_TH))


def _tensor(result: Tensor) -> Tensor:
    return result
