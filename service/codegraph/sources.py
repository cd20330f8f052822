"""Which files are read, and the module each of them would be imported as."""

import os
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BadInput

TEST_FOLDERS = frozenset({"test", "tests"})


@dataclass(frozen=True)
class SourceFile:
    """One Python file and its name."""

    path: Path
    module: str
    """dotted, e.g. ``torch.nn.functional``; a package's ``__init__.py`` has the package's name"""
    is_package: bool
    """relative imports start at the package itself rather than at the package around the module"""
    num_bytes: int

    @property
    def package(self) -> str:
        """Top-level package or module, e.g. ``torch``."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Sources:
    """The files to read, in the order of their module names, and why others are left out."""

    files: tuple[SourceFile, ...]
    skipped: dict[str, int]
    """reason -> number of files"""


def environment_roots() -> tuple[Path, ...]:
    """Folders of the running interpreter's standard library and installed packages, in import order."""
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(dict.fromkeys(Path(paths[name]).resolve() for name in names if Path(paths[name]).is_dir()))


def find_sources(roots: Sequence[Path], *, include_tests: bool, max_file_bytes: int) -> Sources:
    """List the modules that an interpreter with these import roots would find.

    Left out and counted: files that cannot be imported by name, files that an earlier root or a package of
    the same name hides, files larger than `max_file_bytes`, and, unless `include_tests`, folders named test
    or tests.

    Raises:
        BadInput: a root is not a folder, or there is nothing to read.
    """
    found: dict[str, SourceFile] = {}
    skipped: Counter[str] = Counter()
    for root in roots:
        if not root.is_dir():
            raise BadInput(str(root), "not a folder", rule="a root holds packages", remedy="name an existing one")
        in_root = list(_walk(root, include_tests=include_tests, skipped=skipped))
        # as the interpreter does, a package goes before a module of the same name
        for file in sorted(in_root, key=lambda file: (file.module, not file.is_package)):
            if file.module in found:
                skipped["hidden by another file of the same module name"] += 1
            elif file.num_bytes > max_file_bytes:
                skipped[f"larger than {max_file_bytes} bytes"] += 1
            else:
                found[file.module] = file
    if not found:
        place = ", ".join(str(root) for root in roots) or "roots"
        raise BadInput(place, "no Python files", rule="one is needed", remedy="name a folder of packages")
    return Sources(files=tuple(found[module] for module in sorted(found)), skipped=dict(sorted(skipped.items())))


def _walk(root: Path, *, include_tests: bool, skipped: Counter[str]) -> list[SourceFile]:
    files: list[SourceFile] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name.isidentifier() and name != "__pycache__")
        parts = Path(folder).relative_to(root).parts
        is_test = not include_tests and not TEST_FOLDERS.isdisjoint(parts)
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            stem = name.removesuffix(".py")
            module_parts = parts if stem == "__init__" else (*parts, stem)
            if is_test:
                skipped["in a folder of tests"] += 1
            elif not module_parts or not stem.isidentifier():
                skipped["not importable by name"] += 1
            else:
                path = Path(folder, name)
                if not path.is_file():  # a broken link
                    skipped["not readable"] += 1
                    continue
                module, is_package = ".".join(module_parts), stem == "__init__"
                files.append(SourceFile(path, module, is_package, num_bytes=path.stat().st_size))
    return files
