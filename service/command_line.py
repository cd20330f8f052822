"""What all commands share on the command line: run file, overrides, the flag for machines, examples, tables by name."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from storage.errors import BadInput

if TYPE_CHECKING:
    from storage.ingest_settings import IngestResources

Memory = Annotated[
    str, typer.Option(help="Memory of the whole process; at least 304 MiB and 16 bytes a node of the largest type.")
]
Workers = Annotated[int | None, typer.Option(help="Tasks at once; default: all cores.")]
Work = Annotated[
    str | None, typer.Option(help="Folder for temporary files; default: inside a local store, else the system's.")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN.yaml", help="Run file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.field=value]...", help="Override keys of the run file."),
]
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


def is_given(context: typer.Context, option: str) -> bool:
    """Whether an option was written on the command line, and is not its default."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def options_checked(name: str) -> Iterator[None]:
    """Turn what pydantic says about a value into BadInput that names the option of command `name`."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise BadInput(
            option, str(first["input"]), rule=first["msg"], remedy=f"see `hopstream {name} --help`"
        ) from None


def resources_of(memory: str, workers: int | None, work: str | None) -> "IngestResources":
    """What a command that writes a store may use; raises as pydantic does."""
    from storage.ingest_settings import IngestResources

    given = {"memory": memory, "workers": workers, "work": work}
    return IngestResources.model_validate({name: value for name, value in given.items() if value is not None})
