"""Memory stays within its limits, however large the device."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import MIB

SCRIPT = Path(__file__).parents[2] / "bench" / "start_large.py"


def test_a_tebibyte_is_backed_up_in_200_mib(tmp_path: Path) -> None:
    device = tmp_path / "device"
    with device.open("wb") as file:
        file.truncate(1 << 40)
        for stretch in range(64):
            file.seek(stretch << 34)
            file.write(os.urandom(MIB))
    command = [sys.executable, str(SCRIPT), str(device), str(tmp_path / "image")]
    reached = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert reached["status"] == "complete"
    assert reached["peak_bytes"] < 200 * MIB
