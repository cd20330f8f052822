"""The folder of an ingest under way: a subfolder a stage, and a journal that says which stages are finished.

An ingest that was killed goes on behind its last finished stage. The journal holds for one set of inputs and
settings (the fingerprint) and until the machine restarts: files are not forced to the disk between stages, so what
a power cut may have taken is made again.
"""

import json
import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter

JOURNAL = "journal.json"
Result = TypeVar("Result")

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Work:
    """Stages done and under way in `folder`, for the inputs that `fingerprint` stands for.

    What other inputs left there is removed.
    """

    def __init__(self, folder: str, *, fingerprint: str) -> None:
        self.folder = folder
        os.makedirs(folder, exist_ok=True)
        journal = {"fingerprint": fingerprint, "boot": _boot_id(), "folder": os.path.abspath(folder)}
        self.resumed = _read(self.path(JOURNAL)) == journal
        if not self.resumed:
            for name in os.listdir(folder):
                _remove(self.path(name))
            _write(self.path(JOURNAL), json.dumps(journal).encode())

    def path(self, *parts: str) -> str:
        """A path inside the folder."""
        return os.path.join(self.folder, *parts)

    def stage(self, name: str, kind: type[Result], do: Callable[[str], Result]) -> Result:
        """What `do(folder of the stage)` returned, now or in the ingest that finished the stage.

        Args:
            name: of the stage and its folder.
            kind: what it returns, as pydantic reads it back.
            do: the stage.
        """
        done, form = self.path(f"{name}.done.json"), TypeAdapter(kind)
        if os.path.exists(done):
            with open(done, "rb") as file:
                return form.validate_json(file.read())
        folder = self.path(name)
        _remove(folder)
        os.makedirs(folder)
        result = do(folder)
        _write(done, form.dump_json(result))
        return result

    def drop(self, name: str) -> None:
        """Remove the files of a finished stage that nothing reads any more; the stage stays finished."""
        _remove(self.path(name))

    @staticmethod
    def left_by(folder: str) -> str | None:
        """The fingerprint of the inputs that the stages in `folder` are of; None when it does not tell."""
        journal = _read(os.path.join(folder, JOURNAL))
        return None if journal is None else str(journal["fingerprint"])

    @staticmethod
    def discard(folder: str) -> None:
        """Remove all stages; their journal goes last, so that a killed removal is known for what it is."""
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if name != JOURNAL:
                _remove(os.path.join(folder, name))
        _remove(folder)


def _boot_id() -> str:
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


def _read(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write(path: str, data: bytes) -> None:
    with open(f"{path}.partial", "wb") as file:
        file.write(data)
    os.replace(f"{path}.partial", path)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)
