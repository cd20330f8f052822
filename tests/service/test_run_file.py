"""The run file: precedence, refusals that name the key, and what may change on resume."""

from pathlib import Path

import pytest

from service.run_file import (
    RunFile,
    apply_override,
    harmful_differences,
    load_run_file,
    parse_run_text,
    with_absolute_paths,
)
from service.run_keys import known_keys, section_models
from storage.errors import BadInput
from tests.data import ROOT

SECTIONS = "run: {name: a}\ndata: {store: s}\n"
MINIMAL = SECTIONS + "objective: {name: graphmae}\n"


def parse(text: str, *overrides: str) -> RunFile:
    return parse_run_text(text, place="run.yaml", overrides=overrides)


def test_overrides_win_over_the_file_and_the_file_over_defaults() -> None:
    text = MINIMAL + "training: {epochs: 7}\n"
    assert parse(MINIMAL).training.epochs == 10
    assert parse(text).training.epochs == 7
    assert parse(text, "training.epochs=9").training.epochs == 9
    assert parse(text, "tiers.host_cache_bytes=2GiB").tiers.host_cache_bytes == 2 << 30
    assert parse(text, "sampling.fanouts=[3, -1]").sampling.fanouts == (3, -1)


@pytest.mark.parametrize("value", ["-5", "-4GiB", "much", "4 parsecs"])
def test_a_size_that_is_none_is_refused_with_what_would_do(value: str) -> None:
    with pytest.raises(BadInput, match=r"tiers\.memory_bytes=.*at least 0, or one with a unit, such as 512MiB"):
        parse(MINIMAL, f"tiers.memory_bytes={value}")


@pytest.mark.parametrize("empty", ["training:\n", "training: {}\n", "training: ~\ntiers:\n"])
def test_an_empty_section_has_the_defaults_and_takes_overrides(empty: str) -> None:
    assert parse(MINIMAL + empty) == parse(MINIMAL)
    assert parse(MINIMAL + empty, "training.epochs=1") == parse(MINIMAL, "training.epochs=1")


def test_local_folders_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = with_absolute_paths(parse(MINIMAL, "tiers.disk_cache_folder=~/blocks"))
    assert run.tiers.disk_cache_folder == str(tmp_path / "blocks")
    assert run.data.store == str(Path.cwd() / "s")
    assert with_absolute_paths(parse(MINIMAL)).tiers.disk_cache_folder is None


def test_the_resolved_file_reads_back_as_itself() -> None:
    run = parse(MINIMAL, "encoder.name=gat", "training.clip_norm=1.5")
    assert parse(run.to_yaml()) == run


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        (MINIMAL + "trainin: {epochs: 1}", [], ["unknown key trainin", "did you mean training"]),
        (MINIMAL, ["training.epoch=3"], ["unknown key training.epoch", "training.epochs"]),
        (MINIMAL, ["encoder.hiden_dim=3"], ["unknown key encoder.hiden_dim", "encoder.hidden_dim"]),
        (
            SECTIONS + "objective: {name: multitask, tasks: [{name: decorr}, {name: graphmae, mask_rat: 0.5}]}",
            [],
            ["unknown key objective.tasks.1.mask_rat:", "did you mean objective.tasks.1.mask_rate"],
        ),
        (
            SECTIONS + "objective: {name: multitask, tasks: [{name: decorr}, {name: graphmae, mask_rate: 2}]}",
            [],
            ["objective.tasks.1.mask_rate=2:", "less than or equal to 1", "objective.tasks.1.mask_rate (default 0.5)"],
        ),
        (SECTIONS + "objective: {name: multitask, tasks: [{name: decorr}]}", [], ["objective=", "two tasks or more"]),
        (
            SECTIONS + "objective: {name: multitask, tasks: [{name: decorr}, {name: gmae}]}",
            [],
            ["objective.tasks.1", "'graphmae'", "'decorr'"],
        ),
        (
            SECTIONS
            + "objective: {name: multitask, balance: mgda, weights: [1, 2], tasks: [{name: decorr}, {name: bgrl}]}",
            [],
            ["balance=mgda", "leave weights out"],
        ),
        (
            SECTIONS + "objective: {name: multitask, weights: [1], tasks: [{name: decorr}, {name: bgrl}]}",
            [],
            ["weights=[1.0]", "2 tasks"],
        ),
        (
            SECTIONS + "objective: {name: multitask, balance: uncertainty, tasks: [{name: decorr}, {name: bgrl}]}",
            [],
            ["decorr with loss=cca", "below 0"],
        ),
        (MINIMAL, ["objective.mask_rat=0.5"], ["unknown key objective.mask_rat", "objective.mask_rate"]),
        (MINIMAL, ["training.epochs=0"], ["training.epochs=0", "greater than or equal to 1"]),
        (MINIMAL, ["training.epochs=many"], ['training.epochs="many"', "integer"]),
        (MINIMAL, ["encoder.name=cnn"], ['encoder.name="cnn"', "'sage'", "'gat'"]),
        (MINIMAL, ["objective.name=gmae"], ["objective", "graphmae"]),
        (MINIMAL, ["run.name=../../x"], ["run.name", "pattern"]),
        (MINIMAL, ["run.name=a/b"], ["run.name", "pattern"]),
        (MINIMAL, ["epochs=3"], ["not an override", "section.field=value"]),
        (MINIMAL, ["training.epochs"], ["not an override", "training.epochs=20"]),
        ("run: {name: a}\nobjective: {name: graphmae}\n", [], ["data", "Field required"]),
        (
            MINIMAL,
            ["training.epochs=0"],
            ["training.epochs (default 10): Passes over the seeds", "service/RUN_FILE.md"],
        ),
        (
            MINIMAL,
            ["sampling.fanouts=[3, x]"],
            ['sampling.fanouts.1="x"', "sampling.fanouts (default [10, 10, 10]): N"],
        ),
        (MINIMAL + "training: 5", [], ["run.yaml: training=5", "section training holds epochs, max_steps"]),
        (MINIMAL, ["data.store=[1]"], ["data.store: Folder or fsspec URL", "service/RUN_FILE.md"]),
        (
            MINIMAL + "zzz: {like: it}",
            [],
            ["unknown key zzz:", "sections are run, data", "service/RUN_FILE.md"],
        ),
        # the first unknown key of the file, and how many more unknown ones there are
        (
            "zzz: 1\nrun: {nam: a}\ntraining: {epoch: 1, epochs: 0}\n",
            [],
            ["run.yaml: unknown key zzz (and 2 more unknown)"],
        ),
        (MINIMAL + "training: {epochs: 0}\nx: 1", [], ["run.yaml: unknown key x:"]),
        (MINIMAL + "training: {epochs: 0}\nsampling: {seeds_per_step: 0}", [], ["run.yaml:", "=0 (and 1 more):"]),
        (MINIMAL + "1: 2", [], ["run.yaml: unknown key 1:"]),
        # what came from the command line is not blamed on the file
        (MINIMAL, ["training.epoch=3"], ["command line: unknown key training.epoch:"]),
        (MINIMAL, ["nowhere.epochs=3"], ["command line: unknown key nowhere:"]),
        (MINIMAL, ["training.epochs=0"], ["command line: training.epochs=0:"]),
        (MINIMAL, ["sampling.fanouts=[x]"], ["command line: sampling.fanouts.0"]),
        (MINIMAL + "training: {epochs: 0}", ["training.max_steps=3"], ["run.yaml: training.epochs=0:"]),
        ("- a\n- b\n", [], ["a list", "mapping of sections", "training"]),
        ("run: {name: [\n", [], ["a run file is YAML"]),
        ("", [], ["a NoneType", "mapping"]),
    ],
)
def test_a_wrong_run_file_is_refused_with_the_key_and_a_remedy(
    text: str, overrides: list[str], parts: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_run_file(str(tmp_path / "none.yaml"))


def test_an_override_cannot_descend_into_a_value() -> None:
    with pytest.raises(BadInput, match="epochs is not a section"):
        apply_override({"training": {"epochs": 3}}, "training.epochs.x=1")


def test_only_changes_that_alter_the_result_are_harmful() -> None:
    before = parse(MINIMAL)
    harmless = parse(
        MINIMAL,
        "workers.count=3",
        "tiers.host_cache_bytes=5MB",
        "sampling.num_threads=2",
        "training.log_every_steps=1",
    )
    assert harmful_differences(before, harmless) == []
    changed = parse(MINIMAL, "training.learning_rate=0.5", "objective.mask_rate=0.25", "run.seed=1")
    assert harmful_differences(before, changed) == [
        "run.seed: 0 -> 1",
        "objective.mask_rate: 0.5 -> 0.25",
        "training.learning_rate: 0.001 -> 0.5",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "service" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_is_a_valid_run_file(path: Path) -> None:
    run = load_run_file(str(path))
    assert len(run.sampling.fanouts) == run.encoder.num_layers + run.objective.reach


def test_every_key_has_a_description() -> None:
    def undescribed(model: type, prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]  # any pydantic model
            below = list(section_models(field))
            if not below and not field.description:
                found.append(prefix + name)
            for inner in below:
                found += undescribed(inner, f"{prefix}{name}.")
        return found

    assert undescribed(RunFile, "") == []
    assert "training.learning_rate" in set(known_keys(RunFile))
