"""Law: every command, option and run-file key is documented, and every documented one exists."""

import dataclasses
import re
from collections.abc import Iterator

import typer
from pydantic import BaseModel

from service.cli import app
from service.reference import reference
from service.run_file import RunFile
from service.run_keys import section_models
from service.run_status import StepReport
from tests.data import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> dict[str, set[str]]:
    """Every command with its options."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # the command of an app is a group
        found[name] = {
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        } - {"--help"}
    return found


def test_the_run_file_reference_is_up_to_date() -> None:
    assert (ROOT / "service" / "RUN_FILE.md").read_text(encoding="utf-8") == reference()
    assert "service/RUN_FILE.md" in README


def test_every_key_is_in_the_reference_once() -> None:
    tables = reference().split("\n## ")[1:]
    found = [re.findall(r"^\| `(\w+(?:\.\w+)+)`", table, flags=re.MULTILINE) for table in tables]
    wanted = [
        list(leaves(model, f"{name}."))
        for name, field in RunFile.model_fields.items()
        for model in section_models(field)
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))


def leaves(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted keys of the fields that hold values."""
    for name, field in model.model_fields.items():
        below = list(section_models(field))
        for inner in below:
            yield from leaves(inner, f"{prefix}{name}.")
        if not below:
            yield prefix + name


def test_every_command_and_option_is_in_the_readme() -> None:
    for name, options in commands().items():
        assert f"hopstream {name}" in README
        for option in options:
            assert f"`{option}" in README, f"{name} {option}"


def test_every_command_and_option_of_the_readme_exists() -> None:
    known = commands()
    for name in re.findall(r"^hopstream (\w+)", README, flags=re.MULTILINE):
        assert name in known
    every = {option for options in known.values() for option in options}
    table = README[README.index("## Commands") :]
    table = table[: table.index("\n## ")]
    assert set(re.findall(r"`(--[\w-]+)", table)) - {"--help"} == every


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    section = README[README.index("### metrics.jsonl") :]
    section = section[: section.index("\n## ")]
    documented = re.findall(r"^\| `(\w+)`", section, flags=re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(StepReport)]


def test_every_make_target_of_the_readme_exists_and_is_phony() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[0].split())
    for target in re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE):
        assert target in phony
    for target in phony:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_python_module_that_the_documents_run_exists() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for module in re.findall(r"python -m ([\w.]+)", (ROOT / document).read_text(encoding="utf-8")):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
