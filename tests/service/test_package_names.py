"""The features of the code graph do not tell the label: what names a package is not hashed."""

from pathlib import Path

from service.codegraph.package_names import WordsWithoutPackages
from tests.service.code_trees import features_by_id, write_graph, write_tree

OWN_NAME = """
        'What zorgpkg_helper and ZorgPkg are for.'
        from . import zorgpkg_tools
        from .zorgpkg_tools import zorgpkg

        class ZorgpkgError(Exception):
            pass

        class Machine:
            def start_zorgpkg(self, zorgpkg_speed, zorgpkg):
                'Start zorgpkg.'
                self.zorgpkg = zorgpkg_speed
                zorgpkg.run(zorgpkg=zorgpkg, zorgpkg_mode=self.ZORGPKG_MODE)
                return ZorgPkgHelper(zorgpkg.zorgpkg)
"""


def test_names_of_imported_packages_are_not_hashed(tmp_path: Path) -> None:
    with_package = "import torch\nfrom numpy import zeros\ndef f(x):\n    'Call torch.'\n    return torch.relu(x)\n"
    without = "import other\nfrom numpy import zeros\ndef f(x):\n    'Call other.'\n    return other.relu(x)\n"
    rows = []
    for name, text in (("a", with_package), ("b", without)):
        graph = write_graph(write_tree(tmp_path / name, {"m.py": text}), tmp_path / f"out_{name}")
        rows.append(features_by_id(graph, "function"))
    assert rows[0] == rows[1]


def test_a_package_renamed_in_its_text_too_has_the_same_features(tmp_path: Path) -> None:
    found = []
    for name, camel in (
        ("zorgpkg", "ZorgPkg"),
        ("quuxlib", "QuuxLib"),
        ("single", "Single"),
        ("two_words", "TwoWords"),
    ):
        text = OWN_NAME.replace("ZorgPkg", camel).replace("Zorgpkg", name.capitalize())
        text = text.replace("ZORGPKG", name.upper()).replace("zorgpkg", name)
        tree = write_tree(tmp_path / name, {f"{name}/__init__.py": "", f"{name}/inner.py": text})
        graph = write_graph(tree, tmp_path / f"out_{name}")
        rows = [list(features_by_id(graph, kind).values()) for kind in ("module", "class", "function")]
        assert any(rows[2][0])
        found.append(rows)
    assert found[1:] == found[:1] * 3


def test_package_names_are_taken_out_of_the_parts_of_words() -> None:
    words = WordsWithoutPackages({"numpy", "np", "prometheus_client"})
    assert words.filter(["numpy_array", "asNumPyArray", "np", "NP_MAX"]) == ["array", "as", "array", "max"]
    assert words.filter(["PrometheusClient", "client_of", "prometheusclient", "numbers"]) == ["of", "numbers"]
