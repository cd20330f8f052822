"""The code graph against a small hand-written tree whose nodes and edges are listed by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from service.codegraph.build import CodeGraph
from service.codegraph.features import FEATURE_DIM, hash_words, split_identifier
from service.codegraph.sources import environment_roots, find_sources
from storage.errors import BadInput
from tests.service.code_trees import features_by_id, write_graph, write_tree

FILES = {
    "alpha/__init__.py": '''
        """Drawing things."""
        from .shapes import Shape
        from .sub.round import *
    ''',
    "alpha/shapes.py": """
        import abc
        from typing import Generic

        try:
            from fastshapes import area_of
        except ImportError:
            def area_of(shape):
                return shape.area()

        class Shape(abc.ABC):
            def grow(self):
                return self.grow() + area_of(self)

            @property
            def size(self):
                return self._size

            @size.setter
            def size(self, value):
                self._size = abs(value)

            def spin_around(self):
                def turn():
                    return area_of(self)
                return turn()

            def append(self, item):
                pass

        def twice():
            return 1

        def twice():
            return 2
    """,
    "alpha/tools.py": """
        from . import shapes

        def log(text):
            print(text)
            for shapes in text:
                shapes()

        def measure():
            twice = 3
            return shapes.twice() + log("done")

        LOGGER = measure()

        class Pen(shapes.Shape["T"], metaclass=object):
            def spin_around(self):
                LOGGER.press_down()
                super().spin_around()

            def press_down(self):
                items = []
                items.append(1)
                self.missing()
                "a b".split()
    """,
    "alpha/sub/__init__.py": "",
    "alpha/sub/names.py": """
        def label():
            return "label"
    """,
    "alpha/sub/round.py": """
        from ..shapes import Shape as Base, area_of
        from . import names
        import alpha.tools as t

        class Circle(Base):
            class Rim:
                class Paint(Exception):
                    pass

                def width(self):
                    return names.label()

            class Edge(Rim):
                pass

            def __init__(self, radius):
                super().grow()
                self.describe()
                t.log(radius)

            def describe(self):
                return [area_of(self), area_of(None)]

            @classmethod
            def unit(cls):
                return cls(1)

            @staticmethod
            def of(other):
                return other.press_down()

            @t.log
            def grow_twice(self):
                self.grow()

        def make():
            circle = Circle(2)
            circle.append(3)
            return circle.grow_twice()
    """,
    "beta.py": """
        import alpha
        import alpha.sub.round

        def go():
            from alpha import tools as kit
            go()
            alpha.Shape()
            alpha.make()
            alpha.sub.round.Circle.unit()
            kit.Pen()
            unknown()
            alpha.nothing.at_all()
            circle.grow_twice()
    """,
    "effect.py": """
        from pathlib import Path
        Path(__file__).with_name("was_run").write_text("x")
        raise SystemExit("was run")
    """,
    "alpha/tests/test_alpha.py": "def test(): pass",
    "alpha/two-words.py": "x = 1",
    "broken.py": "def f(:\n",
    "null.py": "x = '\0'\n",
}

MODULES = ["alpha", "alpha.shapes", "alpha.sub", "alpha.sub.names", "alpha.sub.round", "alpha.tools", "beta"]
MODULES += ["effect"]
CONTAINS = {
    "module:contains:class": {
        "alpha.shapes": ["Shape"],
        "alpha.sub.round": ["Circle"],
        "alpha.tools": ["Pen"],
    },
    "module:contains:function": {
        "alpha.shapes": ["area_of", "twice", "twice#2"],
        "alpha.tools": ["log", "measure"],
        "alpha.sub.names": ["label"],
        "alpha.sub.round": ["make"],
        "beta": ["go"],
    },
    "class:contains:class": {
        "alpha.sub.round.Circle": ["Rim", "Edge"],
        "alpha.sub.round.Circle.Rim": ["Paint"],
    },
    "class:contains:function": {
        "alpha.shapes.Shape": ["grow", "size", "size#2", "spin_around", "append"],
        "alpha.tools.Pen": ["spin_around", "press_down"],
        "alpha.sub.round.Circle.Rim": ["width"],
        "alpha.sub.round.Circle": ["__init__", "describe", "unit", "of", "grow_twice"],
    },
}
OTHER_EDGES = {
    "module:imports:module": {
        "alpha": ["alpha.shapes", "alpha.sub.round"],
        "alpha.tools": ["alpha.shapes"],
        "alpha.sub.round": ["alpha.shapes", "alpha.sub.names", "alpha.tools"],
        "beta": ["alpha.sub.round", "alpha", "alpha.tools"],
    },
    "class:inherits:class": {
        "alpha.tools.Pen": ["alpha.shapes.Shape"],
        "alpha.sub.round.Circle": ["alpha.shapes.Shape"],
        "alpha.sub.round.Circle.Edge": ["alpha.sub.round.Circle.Rim"],
    },
    "function:calls:function": {
        "alpha.shapes.Shape.grow": ["alpha.shapes.area_of"],  # not itself
        # the nested function is part of its function
        "alpha.shapes.Shape.spin_around": ["alpha.shapes.area_of"],
        "alpha.tools.measure": ["alpha.shapes.twice#2", "alpha.tools.log"],
        # a module's variable is an object of unknown type, and one class alone has this method
        "alpha.tools.Pen.spin_around": ["alpha.tools.Pen.press_down", "alpha.shapes.Shape.spin_around"],
        "alpha.sub.round.Circle.Rim.width": ["alpha.sub.names.label"],
        "alpha.sub.round.Circle.__init__": [
            "alpha.shapes.Shape.grow",
            "alpha.sub.round.Circle.describe",
            "alpha.tools.log",
        ],
        "alpha.sub.round.Circle.describe": ["alpha.shapes.area_of"],
        "alpha.sub.round.Circle.of": ["alpha.tools.Pen.press_down"],
        "alpha.sub.round.Circle.grow_twice": ["alpha.tools.log", "alpha.shapes.Shape.grow"],
        # lists have an append too, so the method named append is not taken
        "alpha.sub.round.make": ["alpha.sub.round.Circle.grow_twice"],
        # through a star import; methods alone in another package are not taken
        "beta.go": ["alpha.sub.round.make", "alpha.sub.round.Circle.unit"],
    },
    "function:calls:class": {
        "alpha.sub.round.Circle.unit": ["alpha.sub.round.Circle"],
        "alpha.sub.round.make": ["alpha.sub.round.Circle"],
        "beta.go": ["alpha.shapes.Shape", "alpha.tools.Pen"],
    },
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tree(tmp_path_factory.mktemp("tree"), FILES)
    (root / "latin.py").write_bytes(b"name = '\xe9'\n")
    (root / "large.py").write_text("x = 1\n" * 200_000)
    (root / "alpha.py").write_text("hidden = True\n")  # the package of the same name goes first
    (root / "gone.py").symlink_to(root / "nowhere.py")
    return root


@pytest.fixture(scope="module")
def graph(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> CodeGraph:
    return write_graph(tree, tmp_path_factory.mktemp("graph"))


def test_nodes_are_the_modules_classes_and_functions_of_the_text(graph: CodeGraph) -> None:
    expected: dict[str, set[str]] = {"module": set(MODULES), "class": set(), "function": set()}
    for relation, inside in CONTAINS.items():
        expected[relation.split(":")[2]] |= {f"{scope}.{name}" for scope, names in inside.items() for name in names}
    found = {kind: pq.read_table(path)["id"].to_pylist() for kind, path in graph.nodes.items()}
    assert {kind: set(ids) for kind, ids in found.items()} == expected
    assert {kind: len(ids) for kind, ids in found.items()} == graph.num_nodes
    assert all(len(set(ids)) == len(ids) for ids in found.values())


def test_edges_are_those_listed_by_hand_each_once(graph: CodeGraph) -> None:
    expected = {
        relation: sorted((scope, f"{scope}.{name}") for scope, names in inside.items() for name in names)
        for relation, inside in CONTAINS.items()
    }
    for relation, targets in OTHER_EDGES.items():
        expected[relation] = sorted((source, name) for source, names in targets.items() for name in names)
    found = {}
    for relation, path in graph.edges.items():
        table = pq.read_table(path)
        assert table.column_names == ["src", "dst"]
        found[relation] = sorted(zip(table["src"].to_pylist(), table["dst"].to_pylist(), strict=True))
    assert found == expected
    assert graph.num_edges == {relation: len(pairs) for relation, pairs in expected.items()}


def test_files_that_are_no_modules_are_counted_by_reason(graph: CodeGraph) -> None:
    assert graph.skipped_files == {
        "hidden by another file of the same module name": 1,
        "in a folder of tests": 1,
        "larger than 1048576 bytes": 1,
        "not decodable": 1,
        "not importable by name": 1,
        "not readable": 1,
        "syntax error": 2,
    }
    assert graph.num_files == len(MODULES)


def test_code_is_never_run(tree: Path, graph: CodeGraph) -> None:
    assert "effect" in pq.read_table(graph.nodes["module"])["id"].to_pylist()
    assert not (tree / "was_run").exists()


def test_calls_that_lead_nowhere_are_counted(tmp_path: Path) -> None:
    text = "def f(x):\n    x()\n    g()\n    g()\n    print(x.y.z())\n    f(1)\n    x[0]()\ndef g(): pass\n"
    graph = write_graph(write_tree(tmp_path / "root", {"m.py": text}), tmp_path / "out")
    assert (graph.num_calls, graph.num_calls_resolved) == (7, 3)
    assert graph.num_edges["function:calls:function"] == 1  # f calls g; that f calls f is no edge


def test_a_class_and_a_submodule_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    files = {
        "a/__init__.py": "class b:\n    def run(self): self.stop()\n    def stop(self): pass\n",
        "a/b.py": "def run(): stop()\ndef stop(): pass\n",
    }
    graph = write_graph(write_tree(tmp_path / "root", files), tmp_path / "out")
    ids = pq.read_table(graph.nodes["function"])["id"].to_pylist()
    assert ids == ["a.b.run", "a.b.stop", "a.b.run#2", "a.b.stop#2"]
    calls = pq.read_table(graph.edges["function:calls:function"]).to_pylist()
    assert calls == [{"src": "a.b.run", "dst": "a.b.stop"}, {"src": "a.b.run#2", "dst": "a.b.stop#2"}]


def test_labels_number_the_packages_with_enough_nodes(tree: Path, tmp_path: Path) -> None:
    graph = write_graph(tree, tmp_path, min_class_nodes=2)
    assert graph.classes == ("alpha", "beta")  # effect has one node
    meaning = json.loads(Path(graph.labels_file).read_text())
    assert meaning["classes"] == ["alpha", "beta"]
    for path in graph.nodes.values():
        table = pq.read_table(path)
        for name, label in zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True):
            assert label == {"alpha": 0, "beta": 1, "effect": -1}[name.split(".")[0]]


def test_tables_have_the_column_types_that_ingest_takes(graph: CodeGraph) -> None:
    schema = pq.read_schema(graph.nodes["function"])
    assert [str(field.type) for field in schema] == [
        "string",
        f"fixed_size_list<element: halffloat>[{FEATURE_DIM}]",
        "int64",
    ]


def test_the_number_of_processes_does_not_change_a_byte(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.codegraph.chunks.CHUNK_BYTES", 500)  # several chunks
    outputs = []
    for num_processes in (1, 2):
        out = tmp_path / str(num_processes)
        write_graph(tree, out, num_processes=num_processes)
        outputs.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert len(outputs[0]) == 3 + 8 + 1
    assert outputs[0] == outputs[1]


def test_chunks_do_not_change_the_graph(
    tree: Path, graph: CodeGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.codegraph.chunks.CHUNK_BYTES", 1)  # a chunk per file
    other = write_graph(tree, tmp_path)
    for one, two in zip(
        [*graph.nodes.values(), *graph.edges.values()],
        [*other.nodes.values(), *other.edges.values()],
        strict=True,
    ):
        assert Path(one).read_bytes() == Path(two).read_bytes()


def test_features_do_not_tell_where_a_package_lies_or_what_it_is_called(tmp_path: Path) -> None:
    inner = {name: text for name, text in FILES.items() if name.startswith("alpha/")}
    moved = {f"vendored/gamma/{name.removeprefix('alpha/')}": text for name, text in inner.items()}
    before = write_graph(write_tree(tmp_path / "a", inner), tmp_path / "before")
    after = write_graph(write_tree(tmp_path / "b", moved), tmp_path / "after")
    for kind in ("module", "class", "function"):
        renamed = {
            name.replace("alpha", "vendored.gamma", 1): row for name, row in features_by_id(before, kind).items()
        }
        assert features_by_id(after, kind) == renamed


def test_features_are_the_signed_log_counts_of_word_parts() -> None:
    rows = hash_words([["parseHTTP_response", "parse"], [], ["x"]])
    assert split_identifier("parseHTTP_response2x") == ["parse", "http", "response", "x"]
    assert rows.dtype == np.float16
    assert rows.shape == (3, FEATURE_DIM)
    expected = np.zeros(FEATURE_DIM)
    for part, count in (("parse", 2), ("http", 1), ("response", 1)):
        number = xxhash.xxh64_intdigest(part.encode())
        expected[number % 128] += np.log(1 + count) * (-1 if number & 128 else 1)
    np.testing.assert_allclose(rows[0], expected / np.linalg.norm(expected), atol=1e-3)
    assert not rows[1].any()
    assert np.abs(rows[2]).tolist().count(1.0) == 1


def test_equal_words_in_another_order_give_the_same_row() -> None:
    words = [f"word{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(300)] * 3
    rows = hash_words([words, words[::-1]])
    assert rows[0].tobytes() == rows[1].tobytes()


def test_the_environment_has_the_standard_library_and_installed_packages() -> None:
    sources = find_sources(environment_roots(), include_tests=False, max_file_bytes=1 << 20)
    modules = [file.module for file in sources.files]
    assert {"json.decoder", "numpy", "pytest"} <= set(modules)
    assert modules == sorted(set(modules))
    assert not any(module.startswith(("site_packages", "test.")) for module in modules)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a folder"):
        write_graph(tmp_path / "absent", tmp_path / "out")


def test_a_folder_without_readable_modules_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no Python files"):
        write_graph(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(BadInput, match="no readable module \\(1 syntax error\\)"):
        write_graph(write_tree(tmp_path / "broken", {"m.py": "def"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
