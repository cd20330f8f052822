"""Names to nodes, over all files: what a path, a member or a method means, as far as names tell it.

Names are looked up as the interpreter would: the module's own definitions (the last one of a name), what it
imports, its submodules, its star imports; of a class its own definitions, then those of its bases, depth
first. A method of an unknown object is taken when one class alone in the caller's package defines a method of
that name and no built-in type has one.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from service.codegraph.chunks import FileNames
from service.codegraph.declarations import MODULE_LEVEL, Target, scope_of

Kind = Literal["module", "class", "function"]

_AMBIGUOUS = -1
_FILE_METHODS = frozenset({"read", "readline", "readlines", "write", "writelines", "close", "flush", "seek", "tell"})
_BUILT_IN_TYPES = (str, bytes, bytearray, list, tuple, dict, set, frozenset, int, float, complex)
_COMMON_METHODS = _FILE_METHODS.union(*(dir(kind) for kind in _BUILT_IN_TYPES))


class Node(NamedTuple):
    """A node by its type and its row in the type's table."""

    kind: Kind
    row: int


class Resolver:
    """Finds nodes by name. `set_bases` makes inherited members known, for the look-ups after it."""

    def __init__(self, files: Sequence[FileNames]) -> None:
        self._files = files
        self._module_rows = {file.module: row for row, file in enumerate(files)}
        self._class_scopes = [scope_of(file.module, name) for file in files for name in file.classes]
        self._class_rows = {scope: row for row, scope in enumerate(self._class_scopes)}
        self._defined: dict[tuple[str, str], Node] = {}  # (scope, bare name) -> the last definition
        self._only_method: dict[tuple[str, str], int] = {}  # (package, method) -> row, or _AMBIGUOUS
        self._bases: Mapping[int, Sequence[int]] = {}
        self._members: dict[tuple[Node, str], Node | None] = {}
        first_class = first_function = 0
        for file in files:
            self._define(file, "class", first_class)
            self._define(file, "function", first_function)
            first_class += len(file.classes)
            first_function += len(file.functions)

    def _define(self, file: FileNames, kind: Literal["class", "function"], first: int) -> None:
        is_class = kind == "class"
        names, parents = (file.classes, file.class_parents) if is_class else (file.functions, file.function_parents)
        package = file.module.partition(".")[0]
        for offset, (name, parent) in enumerate(zip(names, parents, strict=True)):
            bare_name = name.rpartition(".")[2].partition("#")[0]
            in_module = parent == MODULE_LEVEL
            scope = scope_of(file.module, "" if in_module else file.classes[parent])
            node = Node(kind, first + offset)
            previous = self._defined.get((scope, bare_name))
            self._defined[scope, bare_name] = node
            if not (is_class or in_module or bare_name in _COMMON_METHODS or bare_name.startswith("__")):
                known = self._only_method.get((package, bare_name))
                is_redefined = previous is not None and previous.kind == kind and previous.row == known
                self._only_method[package, bare_name] = node.row if known is None or is_redefined else _AMBIGUOUS

    def set_bases(self, bases: Mapping[int, Sequence[int]]) -> None:
        """Rows of the bases of each class, in the order of the text."""
        self._bases = bases
        self._members.clear()

    def find(self, target: Target) -> Node | None:
        """The node a target names, or None."""
        if target.kind == "path":
            return self._imported(target.name)
        if target.kind == "method":
            return self._method(target.scope, target.name)
        if target.kind == "name":
            return self._in_scope(target.scope, target.name)
        row = self._class_rows[target.scope]
        if target.kind == "inherited":
            return self._first_member(self._bases.get(row, ()), target.name)
        if not target.name:
            return Node("class", row)
        return self._member(Node("class", row), target.name) or self._method(target.scope, target.name)

    def find_module(self, path: str) -> int | None:
        """Row of the module that ``import path``, or ``from`` its parent ``import`` its last part, reads."""
        while path not in self._module_rows:
            path = path.rpartition(".")[0]
            if not path:
                return None
        return self._module_rows[path]

    def _in_scope(self, scope: str, path: str) -> Node | None:
        """A dotted path as written in a module or in a class body."""
        first, *rest = path.split(".")
        node = None
        if scope in self._class_rows:
            node = self._defined.get((scope, first))
        module_row = self._module_rows[scope.partition(":")[0]]
        node = node or self._member(Node("module", module_row), first)
        if node is None:
            # neither a definition nor an import: a variable of the module, so an object of unknown type
            is_import = first in self._files[module_row].bindings
            return self._method(scope, rest[-1]) if rest and not is_import else None
        return self._attributes(node, rest)

    def _imported(self, path: str) -> Node | None:
        """An absolute path as in an import statement: a module as far as there is one, then its members."""
        row = self.find_module(path)
        if row is None:
            return None
        rest = path[len(self._files[row].module) + 1 :]
        return self._attributes(Node("module", row), rest.split(".") if rest else [])

    def _attributes(self, node: Node | None, names: Sequence[str]) -> Node | None:
        for name in names:
            node = self._member(node, name) if node else None
        return node

    def _member(self, node: Node, name: str) -> Node | None:
        key = (node, name)
        if key not in self._members:
            self._members[key] = None  # ends cycles of imports and of bases
            if node.kind == "module":
                self._members[key] = self._module_member(self._files[node.row], name)
            elif node.kind == "class":
                own = self._defined.get((self._class_scopes[node.row], name))
                self._members[key] = own or self._first_member(self._bases.get(node.row, ()), name)
        return self._members[key]

    def _module_member(self, file: FileNames, name: str) -> Node | None:
        found = self._defined.get((scope_of(file.module), name))
        if found is None and name in file.bindings:
            found = self._imported(file.bindings[name])
        if found is None and f"{file.module}.{name}" in self._module_rows:
            found = Node("module", self._module_rows[f"{file.module}.{name}"])
        for path in file.star_imports:
            if found is not None or name.startswith("_"):
                break
            row = self._module_rows.get(path)
            found = self._member(Node("module", row), name) if row is not None else None
        return found

    def _first_member(self, classes: Sequence[int], name: str) -> Node | None:
        for row in classes:
            found = self._member(Node("class", row), name)
            if found is not None:
                return found
        return None

    def _method(self, scope: str, name: str) -> Node | None:
        package = scope.partition(":")[0].partition(".")[0]
        row = self._only_method.get((package, name), _AMBIGUOUS)
        return None if row == _AMBIGUOUS else Node("function", row)
