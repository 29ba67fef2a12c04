#!/usr/bin/env python3
"""Prints what pyproject.toml asks for, one requirement a line: to run, to build and to develop.

pip reads the same lists only while it builds the package, and the build needs maturin first.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
sys.stdout.writelines(f"{requirement}\n" for requirement in requirements)
