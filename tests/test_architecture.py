"""The arrows of the house: deploy, helm -> service -> sampling -> storage; nothing points back."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STORAGE = {"storage", "numpy", "pyarrow", "fsspec", "numba", "pydantic", "xxhash"}
SAMPLING = STORAGE | {"sampling", "torch"}
SERVICE = SAMPLING | {
    "service", "ray", "prometheus_client", "dgl", "typer", "rich", "sklearn", "safetensors", "yaml", "psutil",
    "threadpoolctl", "torch_geometric", "matplotlib",
}  # fmt: skip
ALLOWED = {"storage": STORAGE, "sampling": SAMPLING, "service": SERVICE}
FILES = sorted(path for room in ALLOWED for path in (ROOT / room).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "import_module":
            names |= {str(name.value) for name in node.args if isinstance(name, ast.Constant)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported_packages(path) - set(sys.stdlib_module_names) <= ALLOWED[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_one_idea_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_only_message_passing_knows_dgl() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in FILES if "dgl" in imported_packages(path)}
    assert users == {"service/message_passing/dgl_kernels.py"}


def test_only_interop_knows_pyg() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in FILES if "torch_geometric" in imported_packages(path)}
    assert users == {"service/interop/pyg_data.py", "service/interop/pyg_stores.py"}
