"""What messages and documentation strings call an option is one: a remedy that cannot be typed is none."""

import ast
import re
from collections.abc import Iterator

import typer

from service.cli import app
from tests.data import ROOT


def options_of_the_command() -> set[str]:
    """Every option that some subcommand takes, as click knows them."""
    command = typer.main.get_command(app)
    known = {"--help"}
    for subcommand in command.commands.values():  # type: ignore[attr-defined]  # a click group
        for parameter in subcommand.params:
            known.update([*parameter.opts, *parameter.secondary_opts])
    return known


def options_named_in_texts() -> Iterator[tuple[str, str]]:
    """`(file:line, --option)` for every option in a string of the sources, docstrings and f-strings included."""
    for room in ("storage", "service"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value):
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", option


def test_every_option_that_a_text_names_is_one_of_the_command() -> None:
    named = list(options_named_in_texts())
    known = options_of_the_command()
    assert {"--nan", "--nodes"} <= {option for _, option in named}
    assert [f"{place}: {option}" for place, option in named if option not in known] == []
