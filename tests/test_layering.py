"""Imports between files point downward only, by the layers that docs/architecture.md gives them.

A module is a file together with the folder of its name: `container.rs` and `container/*.rs`. What it does inside is its
own affair. Tests inside Rust files may import what they like.
"""

import ast
import graphlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from code_map import ROOT, files_of, read_code_map

from blockcow import _blockcow

PACKAGE = "python/blockcow"
WORKS_WITH_THE_EXTENSION = {"__init__", "backup", "cli", "daemon", "demo", "device", "export"}
"""Everybody may name the extension's exceptions; the rest of it is for these modules."""

_COMMENT = re.compile(r"//.*$", re.MULTILINE)
_TESTS = re.compile(r"^#\[cfg\(test\)\]\nmod \w+ \{.*", re.MULTILINE | re.DOTALL)
_CRATE_PATH = re.compile(r"\bcrate::(?:(?P<name>\w+)|\{(?P<group>[^;]*)\};)")
_NESTED = re.compile(r"\{[^{}]*\}")
_OUT_OF_THE_MODULE = {1: re.compile(r"\bsuper::"), 2: re.compile(r"\bsuper::super::")}


def module_of(file: str) -> str:
    return Path(file).parts[0].removesuffix(".rs").removesuffix(".pyi").removesuffix(".py")


def rust_imports(file: str, text: str) -> set[str]:
    """The modules of the crate that a file names."""
    text = _TESTS.sub("", _COMMENT.sub("", text))
    climb = _OUT_OF_THE_MODULE.get(len(Path(file).parts))
    assert climb is None or not climb.search(text), f"{file} leaves its module by `super::`; write `crate::`"
    names = set()
    for path in _CRATE_PATH.finditer(text):
        group = path["group"] or path["name"]
        while _NESTED.search(group):
            group = _NESTED.sub("", group)
        names |= {item.strip().split("::")[0] for item in group.split(",") if item.strip()}
    return names


def python_imports(file: str, text: str) -> set[str]:
    """The modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(text, file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by dots; write blockcow.…"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = [name.split(".") for name in names if name.split(".")[0] == "blockcow"]
    modules = {module_of(name) for name in files_of(PACKAGE)}
    return {parts[1] if len(parts) > 1 and parts[1] in modules else "__init__" for parts in own}


TREES: dict[str, Callable[[str, str], set[str]]] = {
    "rust/engine/src": rust_imports,
    "rust/frontends/src": rust_imports,
    "rust/bindings/src": rust_imports,
    PACKAGE: python_imports,
}


def imports_of(folder: str) -> dict[str, set[str]]:
    """What each module of a folder imports, itself and its tests left out."""
    graph: dict[str, set[str]] = {}
    for file in sorted(files_of(folder)):
        if Path(file).name == "tests.rs":
            continue
        names = TREES[folder](file, (ROOT / folder / file).read_text())
        graph.setdefault(module_of(file), set()).update(names - {module_of(file)})
    return graph


@pytest.mark.parametrize("folder", TREES)
def test_every_file_has_its_place_in_the_code_map(folder: str) -> None:
    assert files_of(folder) == set(read_code_map()[folder])


@pytest.mark.parametrize("folder", TREES)
def test_imports_point_downward(folder: str) -> None:
    layers: dict[str, int] = {}
    for file, layer in read_code_map()[folder].items():
        assert layers.setdefault(module_of(file), layer) == layer, f"{file} is not in the layer of its module"
    upward = [
        f"{name} (layer {layers[name]}) imports {other} (layer {layers.get(other)})"
        for name, others in imports_of(folder).items()
        for other in others
        if other not in layers or layers[other] > layers[name]
    ]
    assert not upward


@pytest.mark.parametrize("folder", TREES)
def test_modules_form_no_cycle(folder: str) -> None:
    graphlib.TopologicalSorter(imports_of(folder)).prepare()


def test_only_named_modules_work_with_the_extension() -> None:
    found = set()
    for file in files_of(PACKAGE):
        tree = ast.parse((ROOT / PACKAGE / file).read_text(), file)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and any(
                works_with_the_extension(node, alias.name) for alias in node.names
            ):
                found.add(module_of(file))
    assert found == WORKS_WITH_THE_EXTENSION


def works_with_the_extension(node: ast.ImportFrom, name: str) -> bool:
    if node.module != "blockcow._blockcow":
        return node.module == "blockcow" and name == "_blockcow"
    thing = getattr(_blockcow, name)
    return not (isinstance(thing, type) and issubclass(thing, Exception))
