"""Every table that breaks a rule ends the command with one line, without a traceback, and with exit code 2."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.storage.bad_tables import CASES

NOT_TYPED = {
    "bad type name",  # `a/b=...` on the command line is the URL of the type `node`
    "no edge table",  # --edges is required
}


def options(settings: dict[str, Any]) -> Iterator[str]:
    """The settings as a person types them."""
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            for key, url in value.items():
                yield from (option, f"{key}={url}")
        elif isinstance(value, tuple):
            yield from (option, ",".join(map(str, value)))
        elif value is True:
            yield option
        else:
            yield from (option, value)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_TYPED])
def test_ingest_refuses_in_one_line_with_exit_code_2(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    words = ["ingest", *options(case.write(tmp_path)), "--out", str(tmp_path / "store")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2, shown.output
    last = shown.stderr.splitlines()[-1]  # above it stand the stages that were done before
    assert last.startswith("error: ")
    assert shown.stderr.count("error: ") == 1
    assert [part for part in case.says if part not in last] == [], last
    assert shown.stdout == ""
    assert "Traceback" not in shown.output

    printed = CliRunner().invoke(app, [*words, "--json"])
    assert printed.exit_code == 2
    assert printed.stderr == f"{last}\n"
    assert json.loads(printed.stdout) == {"error": last.removeprefix("error: ")}
    assert not (tmp_path / "store").exists()


def test_an_option_that_is_missing_or_unknown_ends_with_exit_code_2() -> None:
    for words in (["ingest"], ["ingest", "--nodes", "n.parquet", "--out", "s"], ["ingest", "--dtype", "float16"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
