"""The Python that the documents show runs as it is, in a folder with a store `my-store` and a run `first`."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import service.interop
from storage.store import Store
from tests.data import ROOT, small_run, small_store
from tests.processes import environment, hopstream

pytest.importorskip("torch_geometric", reason="the extra pyg is not installed")
pytest.importorskip("dgl", reason="dgl has no wheel for this Python")


def examples() -> list[str]:
    """The indented lines of the package's documentation, and every block of Python in the README."""
    documentation = service.interop.__doc__ or ""
    indented = re.findall(r"^(?:    .*\n|\n)+", documentation, flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [*map(textwrap.dedent, indented), *re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)]


def distilled(folder: Path) -> None:
    """Leave a run `first` with a student, on a store that is there."""
    run = str(small_run(folder, name="first", training={"epochs": 1}))
    for command in ("pretrain", "embed", "distill"):
        assert hopstream(command, run, "distill.epochs=1").returncode == 0


def test_examples_run_as_they_are(tmp_path: Path) -> None:
    store = small_store(tmp_path)
    distilled(tmp_path)
    store.rename(tmp_path / "my-store")
    found = [example for example in examples() if example.strip()]
    assert found
    for example in found:
        for name in ("from-dgl", "from-pyg"):
            if name in example:  # each example that makes a store makes it anew
                shutil.rmtree(tmp_path / name, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", example],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert Store.open(str(tmp_path / "from-dgl")).node_types[0].feature_dtype == "float16"
    assert Store.open(str(tmp_path / "from-pyg")).num_nodes("node") == 300
