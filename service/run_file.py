"""The run file: one YAML document that says what to train on, how, and where the run is kept.

Precedence: defaults < the YAML file < `section.field=value` on the command line. Unknown keys are refused with
the nearest known ones. Keys marked harmless (workers, tiers, threads, logging, embedding, evaluation, finetune,
distill) may change when a run is resumed; any other difference is refused, because it would change the result.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from service.distill_section import DistillSection
from service.embedding import EmbeddingConfig
from service.encoders import EncoderConfig
from service.evaluation import EvaluationConfig
from service.finetune_section import FinetuneSection
from service.objectives import ObjectiveConfig
from service.run_keys import item_models, item_number, kind_of, known_keys, section_models, unknown_keys
from service.sampling_section import SamplingSection
from service.tiers import TiersSection
from service.training_section import HARMLESS, Section, TrainingSection
from storage.errors import BadInput
from storage.place import Place

REFERENCE = "service/RUN_FILE.md"
COMMAND_LINE = "command line"
SIZE = "a size is a number of bytes, at least 0, or one with a unit, such as 512MiB or 4GiB"
RULES = {"byte_size": SIZE, "byte_size_unit": SIZE}
"""where pydantic's own words do not say what would do"""


class RunSection(Section):
    """Which run this is: the same name and storage resume it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)] = Field(
        description="Name of the run; letters, digits, '_', '.', '-'."
    )
    storage: str = Field("runs", description="Folder or fsspec URL under which runs are kept.")
    seed: int = Field(0, ge=0, lt=2**31, description="Everything random follows from it.")
    continue_from: str | None = Field(
        None,
        description="Folder or URL of another run, such as runs/first, of the same encoder and objective: begin with "
        "its weights and optimiser state; an infinite schedule is then in its constant phase at once.",
    )
    continue_step: int | None = Field(
        None,
        ge=0,
        description="Which of its checkpoints; unset for the end of its constant phase where it has one, else the "
        "newest.",
    )


class DataSection(Section):
    """What is trained on."""

    store: str = Field(description="Folder or fsspec URL of the graph store.")
    seed_types: tuple[str, ...] = Field((), description="Node types to take seeds from; empty for all.")


class WorkersSection(Section):
    """Data-parallel workers under Ray Train; one worker needs no Ray."""

    count: int = Field(1, ge=1, description="Number of workers.")
    samplers: int = Field(
        0,
        ge=0,
        description="Ray actors, on any node, that sample for each worker: ids and structure, never features; 0: the "
        "worker's threads sample.",
    )


class RunFile(Section):
    """A whole run file."""

    run: RunSection
    data: DataSection
    sampling: SamplingSection = SamplingSection()
    tiers: TiersSection = Field(TiersSection(), json_schema_extra=HARMLESS)
    encoder: EncoderConfig = EncoderConfig()
    objective: ObjectiveConfig
    training: TrainingSection = TrainingSection()
    workers: WorkersSection = Field(WorkersSection(), json_schema_extra=HARMLESS)
    embedding: EmbeddingConfig = Field(EmbeddingConfig(), json_schema_extra=HARMLESS)
    evaluation: EvaluationConfig = Field(EvaluationConfig(), json_schema_extra=HARMLESS)
    finetune: FinetuneSection = Field(FinetuneSection(), json_schema_extra=HARMLESS)
    distill: DistillSection = Field(DistillSection(), json_schema_extra=HARMLESS)

    def to_yaml(self) -> str:
        """The resolved file: every key, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_run_file(path: str, *, overrides: Sequence[str] = ()) -> RunFile:
    """Read a run file and apply `section.field=value` overrides; BadInput names the key and the near ones."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(
            path,
            "no such file",
            rule="a run file is YAML",
            remedy="check the path; service/recipes has examples",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, str(error), rule="a run file can be read", remedy="mend the file") from None
    return parse_run_text(text, place=path, overrides=overrides)


def parse_run_text(text: str, *, place: str, overrides: Sequence[str] = ()) -> RunFile:
    """Parse the text of a run file that came from `place`; as `load_run_file`."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise BadInput(place, reason, rule="a run file is YAML", remedy="mend the file") from None
    if not isinstance(document, dict):
        raise BadInput(
            place,
            f"a {type(document).__name__}",
            rule="a run file is a mapping of sections",
            remedy=f"start with the sections {', '.join(RunFile.model_fields)}",
        )
    refuse_unknown_keys(document, place=place)
    for override in overrides:
        apply_override(document, override)
    refuse_unknown_keys(document, place=COMMAND_LINE)  # the file's own keys are known
    return parse_run(document, place=place, overridden=[override.partition("=")[0] for override in overrides])


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one `section.field=value` in `document`; the value is read as YAML. An empty section holds no field."""
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"\w+(\.\w+)+", key):
        raise BadInput(
            override,
            "not an override",
            rule="overrides read section.field=value",
            remedy="for example training.epochs=20",
        )
    *sections, field = key.split(".")
    place = document
    for section in sections:
        below = {} if place.get(section) is None else place[section]
        if not isinstance(below, dict):
            raise BadInput(
                override,
                f"{section} is not a section",
                rule="overrides name a field",
                remedy="shorten the key",
            )
        place[section] = below
        place = below
    try:
        place[field] = yaml.safe_load(text)
    except yaml.YAMLError:
        place[field] = text


def refuse_unknown_keys(document: dict[Any, Any], *, place: str) -> None:
    """BadInput for the first unknown key in the document's own order, with the number of the others."""
    unknown = list(unknown_keys(document, RunFile))
    if unknown:
        known = known_keys(RunFile, number=item_number(unknown[0]))
        near = difflib.get_close_matches(unknown[0], list(dict.fromkeys(known)), n=3, cutoff=0.5)
        more = f" (and {len(unknown) - 1} more unknown)" if len(unknown) > 1 else ""
        raise BadInput(
            place,
            f"unknown key {unknown[0]}{more}",
            rule="every key of a run file is known",
            remedy=f"did you mean {' or '.join(near)}?"
            if near
            else f"the sections are {', '.join(RunFile.model_fields)}; {REFERENCE} has their keys",
        )


def parse_run(document: dict[str, Any], *, place: str, overridden: Sequence[str]) -> RunFile:
    """Check a document of known keys against the rules; the first broken one is named, with what the key takes.

    Args:
        place: where the document came from.
        overridden: keys whose values came from the command line.
    """
    filled = {section: {} if fields is None else fields for section, fields in document.items()}
    try:
        return with_absolute_paths(RunFile.model_validate(filled))
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        place_of_error = [str(part) for part in first["loc"]]
        parts = without_tags(place_of_error)
        key = ".".join(parts) or "the file"
        value = "" if first["type"] == "missing" else f"={json.dumps(first['input'], default=str)}"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadInput(
            COMMAND_LINE if any(".".join(parts[:end]) in overridden for end in range(1, len(parts) + 1)) else place,
            f"{key}{value}{more}",
            rule=RULES.get(first["type"], first["msg"]).rstrip("."),
            remedy=remedy_for(place_of_error),
        ) from None


def remedy_for(place_of_error: Sequence[str]) -> str:
    """What the key at pydantic's place takes, as far as the models tell: a section's fields, or its description."""
    models: list[type[BaseModel]] = [RunFile]
    for depth, part in enumerate(place_of_error):
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is None:
            models = [model for model in models if kind_of(model) == part] or models
            continue
        below = [*section_models(field), *item_models(field)]
        if not below:
            default = "" if field.is_required() else f" (default {json.dumps(field.default, default=str)})"
            key = ".".join(without_tags(place_of_error[: depth + 1]))
            return f"{key}{default}: {(field.description or '').rstrip('.')}; {REFERENCE} has every key"
        models = below
    keys = dict.fromkeys(name for model in models for name in model.model_fields)
    return f"section {'.'.join(without_tags(place_of_error))} holds {', '.join(keys)}; {REFERENCE} has every key"


def without_tags(parts: Sequence[str]) -> list[str]:
    """The keys of pydantic's place of an error: it puts a section's kind, such as bgrl, behind the section's key."""
    kept: list[str] = []
    models: list[type[BaseModel]] = [RunFile]
    for part in parts:
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is not None:
            models = [*section_models(field), *item_models(field)]
        elif part in (kind_of(model) for model in models):
            models = [model for model in models if kind_of(model) == part]
            continue
        kept.append(part)
    return kept


def with_absolute_paths(run: RunFile) -> RunFile:
    """The run file with local folders named from the root: workers and later commands start in other folders."""
    store, storage = (Place(url).local("") or url for url in (run.data.store, run.run.storage))
    origin = run.run.continue_from and (Place(run.run.continue_from).local("") or run.run.continue_from)
    folders = {
        key: folder and os.path.abspath(os.path.expanduser(folder))
        for key, folder in (
            ("disk_cache_folder", run.tiers.disk_cache_folder),
            ("scratch_folder", run.tiers.scratch_folder),
        )
    }
    return run.model_copy(
        update={
            "tiers": run.tiers.model_copy(update=folders),
            "data": run.data.model_copy(update={"store": store}),
            "run": run.run.model_copy(update={"storage": storage, "continue_from": origin}),
        }
    )


def harmful_differences(old: RunFile, new: RunFile) -> list[str]:
    """`key: old -> new` for every key whose change would change the result of a resumed run."""

    def walk(before: BaseModel, after: BaseModel, prefix: str) -> Iterator[str]:
        for name, field in type(before).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("harmless"):
                continue
            left, right = getattr(before, name), getattr(after, name, None)
            if isinstance(left, BaseModel) and isinstance(right, type(left)):
                yield from walk(left, right, f"{prefix}{name}.")
            elif left != right:
                yield f"{prefix}{name}: {left} -> {right}"

    return list(walk(old, new, ""))
