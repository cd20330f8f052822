"""What one file declares and names, as plain data between the parser and everything after it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from service.codegraph.sources import SourceFile

MODULE_LEVEL = -1
"""`Definition.parent` of what stands directly in the module"""


def scope_of(module: str, class_name: str = "") -> str:
    """A name for a module's or a class's scope; the colon keeps class `a.b` and module `a.b` apart."""
    return f"{module}:{class_name}"


class Target(NamedTuple):
    """What a call or a base names, as far as its own file tells.

    name       `name` is a dotted path that starts in `scope`, a module's or a class's
    path       `name` is an absolute dotted path (imported inside the function)
    member     attribute `name` of an instance of the class of `scope`; an empty name is the class itself
    inherited  attribute `name` of the classes above the class of `scope`
    method     method `name` of an object that the file does not tell; `scope` is the top-level package
    """

    kind: Literal["name", "path", "member", "inherited", "method"]
    scope: str
    name: str


@dataclass
class Definition:
    """The module itself, a class or a function."""

    name: str
    """inside the module: ``Linear.forward``; the second of the same name is ``Linear.forward#2``"""
    bare_name: str
    parent: int
    """index of the class around it, or MODULE_LEVEL"""
    docstring: str
    words: list[str] = field(default_factory=list)
    """identifiers: names, arguments, attributes, keywords, definitions; repeated as often as they stand there"""
    targets: Counter[Target] = field(default_factory=Counter)
    """of a function: what it calls and how often; of a class: its bases"""
    num_dynamic_calls: int = 0
    """calls of local variables and of other expressions, which name nothing"""


@dataclass
class ParsedFile:
    """All that one file tells. Classes and functions are in the order of the text."""

    source: SourceFile
    module: Definition
    classes: list[Definition] = field(default_factory=list)
    functions: list[Definition] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    """absolute paths: modules, or names in modules"""
    bindings: dict[str, str] = field(default_factory=dict)
    """names that the module's own scope takes from elsewhere -> absolute path"""
    star_imports: list[str] = field(default_factory=list)
    package_names: set[str] = field(default_factory=set)
    """names of the file's own package and of imported ones: not to be hashed, since they would tell the package"""
