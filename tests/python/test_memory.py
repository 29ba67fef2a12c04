"""Memory stays within its limits, however large the device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import MIB

SCRIPT = Path(__file__).parents[2] / "bench" / "start_large.py"


KEPT = """
import json, re, sys
from pathlib import Path
import blockcow
from blockcow.node import find
from blockcow.plan import make_plan

device_path, dest = sys.argv[1:]
with blockcow.Device(device_path) as device:
    plan = make_plan(find(device_path), "memory:64M", dest)
    backup = device._prepare(**plan.arguments(), keep=True)
    backup.cut(10.0)
    backup.wait()
peak = re.search(r"^VmHWM:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
print(json.dumps({"peak_bytes": int(peak[1]) * 1024, "status": backup.status()["status"]}))
"""
"""The same in memory that another process could take over."""


@pytest.mark.parametrize("program", [[str(SCRIPT)], ["-c", KEPT]], ids=["anonymous", "kept"])
def test_a_tebibyte_is_backed_up_in_200_mib(tmp_path: Path, program: list[str]) -> None:
    device = tmp_path / "device"
    with device.open("wb") as file:
        file.truncate(1 << 40)
        for stretch in range(64):
            file.seek(stretch << 34)
            file.write(os.urandom(MIB))
    command = [sys.executable, *program, str(device), str(tmp_path / "image")]
    reached = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert reached["status"] == "complete"
    assert reached["peak_bytes"] < 200 * MIB
