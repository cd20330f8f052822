"""A run's folder, and the run file stored in it: the settings that the run began with bind every later command."""

from service.run_file import RunFile, harmful_differences, parse_run_text
from storage.errors import BadInput
from storage.place import Place

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


def refuse_changes(stored: RunFile, run: RunFile) -> None:
    """Raise BadInput that lists the keys in which `run` differs harmfully from what the run began with."""
    differences = harmful_differences(stored, run)
    if differences:
        raise BadInput(
            run_place(run).url,
            f"run file changed: {'; '.join(differences)}",
            rule="a run keeps the settings it began with",
            remedy="undo the change, or give the run another name",
        )
