"""The documents are true: the tests, files, options and exit codes that they name exist, and none is left out."""

import re
from pathlib import Path

import click
import pytest
from code_map import ROOT, read_code_map

import proof_table
from blockcow.cli import verb
from blockcow.cli.backup import backup

GUARANTEES = ROOT / "docs" / "guarantees.md"
PROMISES = 7

_TEST = re.compile(r"`(?P<file>[\w/.-]+\.(?:py|rs))::(?P<name>\w+)`")
_LINK = re.compile(r"\]\((?P<target>[^)#:]+)(?:#[^)]*)?\)")
_OPTION_ROW = re.compile(r"^\| (?P<options>`--[^|]*`) \|(?P<default>[^|]*)\|", re.MULTILINE)


def promises() -> list[str]:
    """The sections of the guarantees, each from its number on."""
    return re.split(r"^## (?=\d)", GUARANTEES.read_text().split("\n## Not promised")[0], flags=re.MULTILINE)[1:]


def test_every_promise_names_a_test() -> None:
    assert [int(promise.split(".")[0]) for promise in promises()] == list(range(1, PROMISES + 1))
    assert not [promise.splitlines()[0] for promise in promises() if not _TEST.search(promise)]


def test_every_test_named_exists() -> None:
    missing = []
    for test in _TEST.finditer(GUARANTEES.read_text()):
        path = ROOT / test["file"]
        keyword = "def" if path.suffix == ".py" else "fn"
        if not path.exists() or not re.search(rf"^\s*{keyword} {test['name']}\b", path.read_text(), re.MULTILINE):
            missing.append(test.group())
    assert not missing


def proving_tests() -> set[str]:
    """All that `make proof` runs and `make test` does not: ``file::name``."""
    rust = re.compile(r'#\[ignore = "run by make proof"\]\n\s*fn (\w+)')
    python = re.compile(r"@pytest\.mark\.proof\n(?:@.*\n)*def (\w+)")
    found = set()
    for pattern, folder, kind in ((rust, "rust", "*.rs"), (python, "tests", "*.py")):
        for path in (ROOT / folder).rglob(kind):
            found |= {f"{path.relative_to(ROOT)}::{name}" for name in pattern.findall(path.read_text())}
    return found


def test_every_proving_test_is_named() -> None:
    text = GUARANTEES.read_text()
    assert len(proving_tests()) > 10
    assert not [test for test in sorted(proving_tests()) if f"`{test}`" not in text]


def test_every_technique_has_its_budget() -> None:
    """What the tests did is held to these figures at the end of `make proof`."""
    rows = proof_table.budgets(GUARANTEES.read_text())
    assert set(rows) == set(proof_table.TECHNIQUES)
    assert all(budget > 0 for budget in rows.values())


def test_every_file_of_the_code_map_exists() -> None:
    assert [
        path for folder, files in read_code_map().items() for path in files if not (ROOT / folder / path).is_file()
    ] == []


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = [link["target"] for link in _LINK.finditer(document.read_text())]
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_readme_lists_the_options_of_backup_and_their_defaults() -> None:
    rows = {row["options"]: row["default"].strip() for row in _OPTION_ROW.finditer((ROOT / "README.md").read_text())}
    documented = {name: default for options, default in rows.items() for name in re.findall(r"--[\w-]+", options)}
    options = {option.opts[0]: option for option in backup.params if isinstance(option, click.Option)}
    assert set(documented) == set(options) - {"--device", "--dest"}
    for name, default in documented.items():
        if default.startswith("`") and isinstance(options[name].default, str):
            assert default == f"`{options[name].default}`", name


def test_readme_lists_the_exit_codes() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+)", (ROOT / "README.md").read_text(), re.MULTILINE)}
    codes = {verb.FAILURE, verb.USAGE, verb.WARNINGS, verb.BUSY, verb.BROKEN, verb.MISMATCH}
    assert codes <= documented
