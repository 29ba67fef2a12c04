"""Reads the code map of docs/architecture.md: which files there are, and in which layer each stands."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "architecture.md"

_FOLDER = re.compile(r"^### .*`(?P<folder>[^`]+)/`$")
_ROW = re.compile(r"^\| (?P<layer>\d+) \| `(?P<file>[^`]+)` \| \S.* \|$")


def read_code_map() -> dict[str, dict[str, int]]:
    """For each folder of the map the layer of each file in it; the lowest layer is 1. Paths are those of the map."""
    section = ARCHITECTURE.read_text().split("\n## Code map\n")[1].split("\n## ")[0]
    folders: dict[str, dict[str, int]] = {}
    for line in section.splitlines():
        if heading := _FOLDER.match(line):
            folders[heading["folder"]] = {}
        elif row := _ROW.match(line):
            folders[list(folders)[-1]][row["file"]] = int(row["layer"])
    return folders


def files_of(folder: str) -> set[str]:
    """The source files that are there, as the map would name them."""
    root = ROOT / folder
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in {".rs", ".py", ".pyi"}}
