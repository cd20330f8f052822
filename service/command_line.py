"""What all commands share on the command line: the flag for machines, examples, names with URLs."""

import re
from typing import Annotated

import typer

from storage.errors import BadInput

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables and bars.")]


def examples(*lines: str) -> str:
    """The epilog of a command's `--help`."""
    return "**Examples**\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def named_tables(options: list[str], *, option: str, default: str) -> dict[str, str]:
    """`NAME=URL` options as a mapping; a bare URL stands for the name `default`."""
    tables: dict[str, str] = {}
    for text in options:
        match = re.match(r"([\w.\-]+(?::[\w.\-]+:[\w.\-]+)?)=(.+)", text)
        name, url = match.groups() if match else (default, text)
        if name in tables:
            raise BadInput(
                option,
                f"{name} twice",
                rule="each type or relation is given once",
                remedy="join several files of one table by a folder or a glob",
            )
        tables[name] = url
    return tables
