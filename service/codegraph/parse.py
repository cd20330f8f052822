"""One file, as text, to its classes, functions, calls, bases, imports and words; never imported or run."""

import ast
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import Any

from service.codegraph.declarations import MODULE_LEVEL, Definition, ParsedFile, Target, scope_of
from service.codegraph.sources import SourceFile

_NOT_CHILDREN = frozenset({"ctx", "op", "ops", "type_comment", "conversion", "simple", "kind", "level", "is_async"})
# The fields of a syntax node that may hold further syntax nodes; lists also hold None and plain strings.
_CHILDREN: dict[type, tuple[str, ...]] = {
    kind: tuple(name for name in kind._fields if name not in _NOT_CHILDREN)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
} | {NoneType: (), str: (), bool: ()}

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_IMPLICIT_CLASS_METHODS = frozenset({"__new__", "__init_subclass__", "__class_getitem__"})


class UnreadableError(Exception):
    """A file that is not a Python module; the message is the reason it is counted under."""


def parse_file(source: SourceFile) -> ParsedFile:
    """Read and parse one file.

    Raises:
        UnreadableError: not decodable, not valid Python, or nested too deeply.
    """
    text = source.path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other people's code: invalid escapes, `is` with a literal
            tree = ast.parse(text)
        return _Reader(source, tree).read()
    except (RecursionError, MemoryError):
        raise UnreadableError("nested too deeply") from None
    except (SyntaxError, ValueError):
        raise UnreadableError("syntax error" if _is_decodable(source) else "not decodable") from None


def _is_decodable(source: SourceFile) -> bool:
    try:
        with tokenize.open(source.path) as lines:
            lines.read()
    except (SyntaxError, UnicodeDecodeError):
        return False
    return True


class _Reader:
    """Fills a ParsedFile from a syntax tree."""

    def __init__(self, source: SourceFile, tree: ast.Module) -> None:
        self.tree = tree
        docstring = ast.get_docstring(tree, clean=False) or ""
        self.file = ParsedFile(source, Definition("", "", MODULE_LEVEL, docstring), package_names={source.package})
        self.num_of_name: Counter[str] = Counter()

    def read(self) -> ParsedFile:
        self._read_block(self.tree.body, self.file.module, MODULE_LEVEL)
        return self.file

    def _read_block(self, nodes: Iterable[ast.AST], owner: Definition, parent: int) -> None:
        """What stands in a module or class body, also under if, try, with and loops, in order."""
        waiting = [*nodes][::-1]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _FunctionNode):
                owner.words.append(node.name)
                self.file.functions.append(self._read_function(node, owner, parent))
            elif isinstance(node, ast.ClassDef):
                owner.words.append(node.name)
                self._read_class(node, owner, parent)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                bindings = self._read_import(node, owner)
                if parent == MODULE_LEVEL:
                    self.file.bindings.update(bindings)
            elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
                waiting.extend([*ast.iter_child_nodes(node)][::-1])
            else:
                _Body([node], owner)

    def _define(self, node: _FunctionNode | ast.ClassDef, owner: Definition, parent: int) -> Definition:
        name = f"{owner.name}.{node.name}" if owner.name else node.name
        self.num_of_name[name] += 1
        if self.num_of_name[name] > 1:
            name = f"{name}#{self.num_of_name[name]}"
        docstring = ast.get_docstring(node, clean=False) or ""
        return Definition(name, node.name, parent, docstring, words=[node.name])

    def _read_class(self, node: ast.ClassDef, owner: Definition, parent: int) -> None:
        definition = self._define(node, owner, parent)
        index = len(self.file.classes)
        self.file.classes.append(definition)
        _Body([*node.bases, *node.keywords, *node.decorator_list], definition)
        module = self.file.source.module
        for expression in node.bases:
            base = expression.value if isinstance(expression, ast.Subscript) else expression  # Generic[T]
            root, attributes = _chain(base)
            if isinstance(root, ast.Name):
                path = ".".join([root.id, *attributes])
                definition.targets[Target("name", scope_of(module, owner.name), path)] += 1
        self._read_block(node.body, definition, index)

    def _read_function(self, node: _FunctionNode, owner: Definition, parent: int) -> Definition:
        definition = self._define(node, owner, parent)
        body = _Body([node], definition)
        local_paths: dict[str, str] = {}
        for statement in body.imports:
            local_paths.update(self._read_import(statement, definition))
        local = (body.bound | local_paths.keys()) - body.module_names
        instance, class_object = _first_argument(node) if parent != MODULE_LEVEL else ("", "")
        module, package = self.file.source.module, self.file.source.package
        for called in body.called:
            root, attributes = _chain(called)
            first = root.id if isinstance(root, ast.Name) else ""
            path = ".".join([first, *attributes])
            method = attributes[-1] if attributes else ""
            target: Target | None = Target("method", package, method) if method else None
            if first and first in (instance, class_object) and len(attributes) < 2:
                member = method or ("" if first == class_object else "__call__")
                target = Target("member", scope_of(module, owner.name), member)
            elif first in local_paths:
                target = Target("path", "", ".".join([local_paths[first], *attributes]))
            elif first and first not in local:
                target = Target("name", scope_of(module), path)
            elif parent != MODULE_LEVEL and len(attributes) == 1 and _is_super(root):
                target = Target("inherited", scope_of(module, owner.name), method)
            elif isinstance(root, ast.Constant | ast.JoinedStr):
                target = None  # "".join and the like
            if target is None:
                definition.num_dynamic_calls += 1
            else:
                definition.targets[target] += 1
        return definition

    def _read_import(self, node: ast.Import | ast.ImportFrom, owner: Definition) -> dict[str, str]:
        """Note what is imported; returns the names bound and their absolute paths."""
        bindings: dict[str, str] = {}
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                self.file.imports.append(alias.name)
                self.file.package_names.update((first, alias.asname or first))
                bindings[alias.asname or first] = alias.name if alias.asname else first
            return bindings
        path = node.module or ""
        if node.level:
            parts = self.file.source.module.split(".")
            num_kept = len(parts) - node.level + self.file.source.is_package
            if num_kept < 1:
                return bindings  # beyond the top-level package
            path = ".".join([*parts[:num_kept], *([path] if path else [])])
        else:
            self.file.package_names.add(path.partition(".")[0])
        for alias in node.names:
            if alias.name == "*":
                self.file.imports.append(path)
                self.file.star_imports.append(path)
            else:
                self.file.imports.append(f"{path}.{alias.name}")
                owner.words.append(alias.name)
                bindings[alias.asname or alias.name] = f"{path}.{alias.name}"
        return bindings


class _Body:
    """The words of some syntax nodes and all below them, and what a function's scope needs; the hot loop."""

    def __init__(self, nodes: Sequence[ast.AST], owner: Definition) -> None:
        self.called: list[ast.expr] = []
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.bound: set[str] = set()
        self.module_names: set[str] = set()
        words = owner.words
        stack: list[Any] = list(nodes)  # Any: mypy cannot follow the tests of `kind`
        pop, push, extend = stack.pop, stack.append, stack.extend
        while stack:
            node = pop()
            kind = node.__class__
            # The order of the cases is how often they come. `type(...) is` rather than match: twice as fast.
            if kind is ast.Name:
                words.append(node.id)
                if node.ctx.__class__ is not ast.Load:
                    self.bound.add(node.id)
            elif kind is ast.Attribute:
                words.append(node.attr)
                push(node.value)
            elif kind is ast.Constant:
                pass
            elif kind is ast.Call:
                self.called.append(node.func)
                push(node.func)
                extend(node.args)
                extend(node.keywords)
            elif kind is ast.keyword:
                if node.arg:
                    words.append(node.arg)
                push(node.value)
            elif kind is ast.arg:
                words.append(node.arg)
                self.bound.add(node.arg)
                push(node.annotation)
            else:
                if kind is ast.Import or kind is ast.ImportFrom:
                    self.imports.append(node)
                    continue
                if kind is ast.FunctionDef or kind is ast.AsyncFunctionDef or kind is ast.ClassDef:
                    if node is not nodes[0]:
                        words.append(node.name)
                        self.bound.add(node.name)
                    # a decorator is called too; one with arguments is an ast.Call and comes by itself
                    self.called.extend(d for d in node.decorator_list if d.__class__ is not ast.Call)
                elif kind is ast.ExceptHandler and node.name:
                    words.append(node.name)
                    self.bound.add(node.name)
                elif kind is ast.Global:
                    self.module_names.update(node.names)
                for name in _CHILDREN[kind]:
                    child = getattr(node, name)
                    if child.__class__ is list:
                        extend(child)
                    elif child is not None:
                        push(child)


def _chain(expression: ast.expr) -> tuple[ast.expr, list[str]]:
    """`a.b.c` as the expression `a` and the attributes [b, c]."""
    attributes: list[str] = []
    while isinstance(expression, ast.Attribute):
        attributes.append(expression.attr)
        expression = expression.value
    return expression, attributes[::-1]


def _first_argument(node: _FunctionNode) -> tuple[str, str]:
    """The name of a method's instance and of its class object; the one it does not have is empty."""
    decorators = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
    arguments = [*node.args.posonlyargs, *node.args.args]
    if not arguments or "staticmethod" in decorators:
        return "", ""
    if "classmethod" in decorators or node.name in _IMPLICIT_CLASS_METHODS:
        return "", arguments[0].arg
    return arguments[0].arg, ""


def _is_super(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Call) and isinstance(expression.func, ast.Name) and expression.func.id == "super"
