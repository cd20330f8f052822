"""The rooms of ARCHITECTURE.md exist, and the tree alone, as Ray uploads it, is the whole program."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.data import ROOT


def test_every_room_of_the_architecture_exists() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## The main path")[0]
    rooms = re.findall(
        r"`(\w+)/`", "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))
    )
    assert {"storage", "sampling", "service", "deploy", "helm", "tests"} <= set(rooms)
    assert [room for room in rooms if not (ROOT / room).is_dir()] == []
    for room in ("deploy", "helm"):
        assert (ROOT / room / "README.md").is_file()


def test_a_copy_of_the_tree_runs_its_own_code(tmp_path: Path) -> None:
    for room in ("storage", "sampling", "service"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "section.field=value" in run("-m", "service", "pretrain", "--help")
    places = run(
        "-c", "import service.cli, sampling, storage; print(service.__file__, sampling.__file__, storage.__file__)"
    )
    assert [Path(place).parent.parent for place in places.split()] == [tmp_path] * 3
