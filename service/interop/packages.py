"""Libraries that only some users have: loaded when asked for, and named with their remedy when they are not there."""

from typing import Any

from service.message_passing import dgl_kernels
from storage.errors import BadInput


def missing_package(name: str, error: BaseException, *, remedy: str) -> BadInput:
    """The error for a package that is not installed, or does not load here."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return BadInput(
        f"package {name}",
        f"it does not load here ({lines[0]})",
        rule=f"graphs are exchanged with {name} where it is installed",
        remedy=remedy,
    )


def missing_pyg(error: BaseException) -> BadInput:
    """The error for PyG."""
    return missing_package("torch_geometric", error, remedy='pip install "hopstream[pyg]"')


def load_dgl() -> Any:
    """The dgl package; BadInput where it does not load."""
    try:
        return dgl_kernels.load_dgl()
    except MemoryError:
        raise
    except Exception as error:  # a dgl built for another torch raises what it likes
        remedy = 'pip install "hopstream[pyg]" on Python 3.11, which brings dgl 1.1.3 beside a torch that it loads with'
        raise missing_package("dgl", error, remedy=remedy) from error
