"""Every objective trains from a run file, and a run that was stopped ends with the bytes of one that was not."""

from pathlib import Path
from typing import Any, get_args

import pytest

from service.checkpoint import list_checkpoints, read_checkpoint
from service.objectives import ObjectiveConfig
from service.pretraining import pretrain
from service.run_file import load_run_file
from storage.place import Place
from storage.progress import NoProgress
from tests.data import small_run, small_store

KINDS = get_args(get_args(ObjectiveConfig)[0])
# by name and, of a name with several settings, what tells these apart
SETTINGS: dict[str, dict[str, Any]] = {
    "graphmae": {"mask_rate": 0.5},
    "graphmae with latents": {"latent_weight": 2.0, "momentum": 0.9},
    "bgrl": {"predictor_dim": 8},
    "infonce": {"projector_dim": 8},
    "decorr": {"loss": "barlow"},
    "edgemask": {"decoder_dim": 8},
    "pretext": {"num_clusters": 4, "tasks": "[degree, partition, cluster, similarity]", "num_parts": 4},
    "gptgnn": {"num_negatives": 20, "queue_size": 50},
    "multitask": {"balance": "mgda", "tasks": "[{name: graphmae}, {name: decorr}, {name: bgrl}]"},
}
REACH = {"graphmae": 1, "edgemask": 1, "gptgnn": 1, "multitask": 1}


def test_every_objective_has_settings_here() -> None:
    assert {kind.model_fields["name"].default for kind in KINDS} == {title.partition(" ")[0] for title in SETTINGS}


@pytest.mark.parametrize("title", SETTINGS)
def test_a_stopped_run_of_an_objective_ends_with_the_bytes_of_a_whole_one(tmp_path: Path, title: str) -> None:
    small_store(tmp_path)
    objective = title.partition(" ")[0]
    fanouts = [4] * (2 + REACH.get(objective, 0))
    files = []
    for name in ("whole", "stopped"):
        path = small_run(tmp_path, name=name, sampling={"fanouts": fanouts})
        text = path.read_text().replace("mask_rate: 0.5", "").replace("replace_rate: 0.1", "")
        path.write_text(text.replace("name: graphmae", f"name: {objective}"))
        files.append(path)
    words = [f"objective.{key}={value}" for key, value in SETTINGS[title].items()]
    whole = pretrain(load_run_file(str(files[0]), overrides=words), progress=NoProgress())
    assert whole.step == whole.total_steps == 20
    assert whole.summary is not None
    assert whole.summary.loss != 0.0
    stopped = load_run_file(str(files[1]), overrides=words)

    class Stopped(NoProgress):
        """Ends the process's training as Ctrl-C does, behind a checkpoint."""

        def __init__(self) -> None:
            self._steps = 0

        def stage(self, name: str, *, total: int, unit: str) -> None:
            self._steps = 0

        def advance(self, amount: int) -> None:
            self._steps += amount
            if self._steps == 8 and amount == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped, progress=Stopped())
    place = Place(str(tmp_path / "runs" / "stopped"))
    assert list_checkpoints(place)[-1].endswith("6")
    assert pretrain(stopped, progress=NoProgress()).step == 20
    last = list_checkpoints(place)[-1]
    contents = [read_checkpoint(Place(str(tmp_path / "runs" / name)), last).contents for name in ("whole", "stopped")]
    assert contents[0] == contents[1]
