"""How a command ends: its result as a table or JSON, its error as one line, its exit code.

0    done
1    failed
2    bad input, or a command line that cannot be understood
130  interrupted by Ctrl-C; what was done is kept and the same command goes on
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType

from service.errors import TrainingFailed
from service.progress import ProgressBars
from storage.errors import BadInput

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


@contextmanager
def command(*, as_json: bool) -> Iterator[ProgressBars]:
    """Runs a command's body with progress bars; turns what it raises into a message and an exit code."""
    try:
        with ProgressBars(shown=not as_json) as progress:
            yield progress
    except BadInput as error:
        complain(str(error), as_json=as_json)
        raise typer.Exit(BAD_INPUT) from None
    except (TrainingFailed, OSError, MemoryError) as error:
        complain(str(error) or type(error).__name__, as_json=as_json)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from what is kept", as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:
        # a defect of ours, or a library's: the trace is what a report needs
        traceback.print_exc()
        complain(f"{type(error).__name__}: {error}", as_json=as_json)
        raise typer.Exit(FAILED) from None


def complain(message: str, *, as_json: bool) -> None:
    """One line on the error stream; with `--json` an object on the output as well."""
    line = " ".join(message.split())
    if as_json:
        sys.stdout.write(json.dumps({"error": line}) + "\n")
    sys.stderr.write(f"error: {line}\n")


def show(result: dict[str, Any], *, as_json: bool, table: Callable[[], RenderableType]) -> None:
    """Print a result: one JSON object, or the table for people."""
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        # cropped lines would cut commands and paths where the output is no terminal, 80 columns wide
        Console().print(table(), crop=False)
