"""The reference of run-file keys as Markdown, made from the models themselves.

python -m service.reference > service/RUN_FILE.md
"""

import json
import sys
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from service.run_file import RunFile
from service.run_keys import kind_of, section_models


def reference() -> str:
    """The whole document."""
    lines = [
        "# Run file",
        "",
        "Every key of a run file, made by `python -m service.reference`. Defaults < file < `section.field=value` on",
        "the command line. A key marked * may change when a run is resumed; any other change is refused.",
    ]
    for name, field in RunFile.model_fields.items():
        harmless = is_harmless(field)
        models = list(section_models(field))
        for model in models:
            title = f"{name}, with name: {kind_of(model)}" if len(models) > 1 else name
            lines += ["", f"## {title}", "", "| key | default | what it is |", "| --- | --- | --- |"]
            lines += list(rows(model, name, harmless=harmless))
    return "\n".join(lines) + "\n"


def rows(model: type[BaseModel], section: str, *, harmless: bool) -> Iterator[str]:
    """A table row for every field of a section."""
    for name, field in model.model_fields.items():
        below = list(section_models(field))
        for inner in below:
            yield from rows(inner, f"{section}.{name}", harmless=harmless or is_harmless(field))
        if below:
            continue
        mark = " *" if harmless or is_harmless(field) else ""
        default = "required" if field.is_required() else f"`{json.dumps(plain(field.default))}`"
        description = sentence(field.description or "")
        choices = literal_choices(field.annotation)
        if choices:
            description += f" One of: {', '.join(choices)}."
        yield f"| `{section}.{name}`{mark} | {default} | {description} |"


def sentence(text: str) -> str:
    """A description as a sentence inside a table."""
    text = text.replace("|", "\\|").rstrip(".")
    return text[:1].upper() + text[1:] + "."


def is_harmless(field: FieldInfo) -> bool:
    """Whether a field or section may change between a run and its resumption."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("harmless"))


def plain(value: Any) -> Any:
    """A default as people write it in YAML."""
    return value.human_readable() if isinstance(value, ByteSize) else value


def literal_choices(annotation: Any) -> list[str]:
    """The words that a choice admits; empty for other kinds of values."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for inner in get_args(annotation) for choice in literal_choices(inner)]
    return []


if __name__ == "__main__":
    sys.stdout.write(reference())
