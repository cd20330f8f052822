"""Continued pretraining: a new run that begins with the weights and optimiser state of another run's checkpoint.

    checkpoints of the other run -> one of them -> model, optimiser

The new run counts its own steps from 0 and draws by its own seed. With the infinite schedule (`service.learning_rate`)
it is in the constant phase at once, as the other run was at its `branch_step`; the checkpoint of that step is kept.
Which step it is is found once, before the run begins, and stored with the run: the other run may still be writing.
"""

from torch import nn

from service.checkpoint import (
    Checkpoint,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    read_checkpoint,
)
from service.learning_rate import branch_step
from service.run_file import RunFile, harmful_differences
from service.run_folder import run_place, stored_run, with_stored_origin
from service.run_status import read_status
from storage.errors import BadInput, DamagedStore
from storage.place import Place


def with_origin(run: RunFile) -> RunFile:
    """`run` with `run.continue_step` set, where it continues from another; a run that began keeps what is stored.

    Raises BadInput when the other run has no whole checkpoint, or trains another encoder or objective.
    """
    if run.run.continue_from is None or run.run.continue_step is not None:
        return run
    stored = stored_run(run_place(run))
    known = run if stored is None else with_stored_origin(stored, run)
    if stored is not None and list_checkpoints(run_place(run)):
        return known
    place = Place(run.run.continue_from)
    refuse_other_model(run, place)
    # what an attempt without a checkpoint began with may be gone by now
    if known.run.continue_step is not None and is_whole(place, known.run.continue_step):
        return known
    return run.model_copy(update={"run": run.run.model_copy(update={"continue_step": newest_or_branch(place)})})


def branch_checkpoint(run: RunFile) -> Checkpoint:
    """The checkpoint that `run` continues from.

    Raises BadInput when the other run has no such checkpoint, or trains another encoder or objective; DamagedStore when
    the checkpoint is damaged.
    """
    assert run.run.continue_from is not None
    place = Place(run.run.continue_from)
    refuse_other_model(run, place)
    step = run.run.continue_step
    name = checkpoint_name(newest_or_branch(place) if step is None else step)
    names = list_checkpoints(place)
    if name not in names:
        steps = ", ".join(str(int(known.removeprefix("step-"))) for known in names) or "none"
        raise BadInput(
            f"run.continue_step={step}",
            f"no such checkpoint in {place.url}",
            rule="a run continues from a checkpoint that is there",
            remedy=f"choose one of its steps: {steps}",
        )
    return load_checkpoint(place, name)


def is_whole(place: Place, step: int) -> bool:
    """Whether the run at `place` has a checkpoint of `step` with every byte as written."""
    try:
        read_checkpoint(place, checkpoint_name(step))
    except DamagedStore:
        return False
    return True


def newest_or_branch(place: Place) -> int:
    """Steps of the other run's checkpoint at the end of its constant phase; of its newest whole one without it."""
    stored, status = stored_run(place), read_status(place)
    if stored is not None and status is not None:
        step = branch_step(stored.training, total_steps=status.total_steps)
        if step is not None and is_whole(place, step):
            return step
    whole, _ = newest_whole(place)
    if whole is None:
        raise BadInput(
            f"run.continue_from={place.url}",
            "no checkpoint",
            rule="a run continues from a checkpoint of another run",
            remedy="train that run first, or name another",
        )
    return whole.state.step


def refuse_other_model(run: RunFile, place: Place) -> None:
    """Raise BadInput when the run at `place` is none, or its encoder, objective or optimiser are not those of `run`."""
    stored = stored_run(place)
    if stored is None:
        raise BadInput(
            f"run.continue_from={place.url}",
            "no run there",
            rule="it names the folder of a run: its storage, then its name",
            remedy="for example runs/first",
        )
    parts = ("encoder.", "objective.", "training.optimizer")
    differences = [
        found for found in harmful_differences(stored, run) if found.startswith((*parts, "encoder:", "objective:"))
    ]
    if differences:
        raise BadInput(
            f"run.continue_from={place.url}",
            f"that run has another model: {'; '.join(differences)}",
            rule="weights and optimiser state fit the encoder, objective and optimiser that made them",
            remedy="use the same settings, or begin anew without run.continue_from",
        )


def load_weights(model: nn.Module, origin: Checkpoint, *, place: str) -> None:
    """Put another run's weights into `model`; BadInput when its graph has other types, relations or widths.

    Learned rows go with them: BadInput when the nodes are not those of that run's store and of what was appended to it.
    """
    try:
        model.load_state_dict(origin.model)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"run.continue_from={place}",
            reason[:300],
            rule="both runs train on graphs of the same node types, relations and feature columns",
            remedy="continue on a store of the same schema",
        ) from None
