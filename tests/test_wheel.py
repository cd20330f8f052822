"""The wheel holds what it needs and imports without the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.data import ROOT


def test_the_wheel_imports_from_an_empty_folder_and_carries_its_data(tmp_path: Path) -> None:
    rooms = ("storage", "sampling", "service")
    source = tmp_path / "source"  # building leaves a folder behind
    for room in rooms:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("hopstream-*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(unpacked)
    sources = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("*.py")}
    assert sources <= names
    assert {f"{room}/py.typed" for room in rooms} <= names
    assert {f"service/recipes/{path.name}" for path in (ROOT / "service" / "recipes").glob("*.yaml")} <= names
    assert not [name for name in names if name.startswith(("tests/", "deploy/", "helm/"))]
    program = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r}); import storage.ingest, sampling.loader, service.cli; "
        "print(service.cli.__file__)"
    )
    done = subprocess.run([sys.executable, "-Ic", program], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip().startswith(str(unpacked))
