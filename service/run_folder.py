"""A run's folder, and what binds every later command: the settings and the store that the run began with."""

import shlex

from service.run_file import RunFile, harmful_differences, parse_run_text
from storage.block_cache import BlockCache
from storage.errors import BadInput
from storage.place import Place
from storage.store import Store

RUN_FILE = "run.yaml"


def run_place(run: RunFile) -> Place:
    """The folder of a run: `<storage>/<name>`."""
    return Place(run.run.storage).child(run.run.name)


def stored_run(place: Place) -> RunFile | None:
    """The run file stored in a run's folder; None when there is none."""
    try:
        text = place.read_bytes(RUN_FILE).decode()
    except FileNotFoundError:
        return None
    return parse_run_text(text, place=place.full(RUN_FILE))


def store_run(run: RunFile) -> None:
    """Write the resolved run file into the run's folder."""
    run_place(run).write_bytes(RUN_FILE, run.to_yaml().encode())


def replay_command(run: RunFile, *, step: int) -> str:
    """The command that does step `step` (from 1) of a run again and looks at every layer."""
    stored = run_place(run).local(RUN_FILE)
    return f"`hopstream replay {'RUN.yaml' if stored is None else shlex.quote(stored)} --step {step}`"


def with_stored_origin(stored: RunFile, run: RunFile) -> RunFile:
    """`run`, which leaves open from which step it continues, with the step that `stored` has for the same origin."""
    if run.run.continue_step is not None or run.run.continue_from != stored.run.continue_from:
        return run
    section = run.run.model_copy(update={"continue_step": stored.run.continue_step})
    return run.model_copy(update={"run": section})


def refuse_changes(stored: RunFile, run: RunFile) -> None:
    """Raise BadInput that lists the keys in which `run` differs harmfully from what the run began with."""
    differences = harmful_differences(stored, with_stored_origin(stored, run))
    if differences:
        raise BadInput(
            run_place(run).url,
            f"run file changed: {'; '.join(differences)}",
            rule="a run keeps the settings it began with",
            remedy="undo the change, or give the run another name",
        )


def open_same_store(
    url: str, *, generation: int, generation_xxh64: str, what: str, block_cache: BlockCache | None = None
) -> Store:
    """Open the generation of the store at `url` that `what` belongs to; BadInput when another store is there now."""
    store = Store.open(url, generation=generation, block_cache=block_cache)
    if store.generation_xxh64 != generation_xxh64:
        raise BadInput(
            url,
            f"the store was replaced: generation {generation} is {store.generation_xxh64}, not {generation_xxh64}",
            rule=f"{what} belongs to the store that it was made from",
            remedy="put that store back, or begin a run of another name on this one",
        )
    return store
