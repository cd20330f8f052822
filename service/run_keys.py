"""The keys of a run file as its models have them: sections, kinds of a section, and lists of sections."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def known_keys(model: type[BaseModel], prefix: str = "", *, number: int = 0) -> Iterator[str]:
    """Every dotted key of a model, sections and fields; those of a list of sections as of its item `number`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for below in section_models(field):
            yield from known_keys(below, f"{prefix}{name}.", number=number)
        for below in item_models(field):
            yield from known_keys(below, f"{prefix}{name}.{number}.", number=number)


def unknown_keys(document: dict[Any, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a document that a model does not have, in the document's order."""
    for name, value in document.items():
        field = model.model_fields.get(name)
        if field is None:
            yield f"{prefix}{name}"
        elif isinstance(value, dict):
            yield from _unknown_in(value, list(section_models(field)), f"{prefix}{name}.")
        elif isinstance(value, list):
            kinds = list(item_models(field))
            for number, item in enumerate(value):
                if kinds and isinstance(item, dict):
                    yield from _unknown_in(item, kinds, f"{prefix}{name}.{number}.")


def item_number(key: str) -> int:
    """Which item of a list of sections a dotted key is in; 0 outside lists."""
    found = re.search(r"\.(\d+)\.", key)
    return int(found[1]) if found else 0


def section_models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The model of a section, or of each of its kinds, told apart by `name`; none for a field that holds a value."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if is_model(annotation):
            yield annotation


def item_models(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The model of each kind of section that a list of sections may hold; none for other fields."""
    for annotation in get_args(field.annotation):
        for kinds in get_args(annotation):  # of an annotated choice
            yield from (kind for kind in get_args(kinds) if is_model(kind))


def is_model(annotation: Any) -> bool:
    """Whether an annotation is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def kind_of(model: type[BaseModel]) -> str | None:
    """The `name` by which a section's model is chosen, where that has one choice only."""
    field = model.model_fields.get("name")
    choices = () if field is None else get_args(field.annotation)
    return str(choices[0]) if len(choices) == 1 else None


def _unknown_in(section: dict[Any, Any], kinds: list[type[BaseModel]], prefix: str) -> Iterator[str]:
    chosen = [kind for kind in kinds if kind_of(kind) == section.get("name")] if len(kinds) > 1 else kinds
    for kind in chosen:
        yield from unknown_keys(section, kind, prefix)
