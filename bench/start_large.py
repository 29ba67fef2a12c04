"""Backs up one device in a process of its own and prints how long it took to start and how much memory it took.

Run by `test_sizes.py`, because the peak of memory is a figure of the whole process.
"""

import json
import re
import sys
import time
from pathlib import Path

import blockcow

device_path, dest = sys.argv[1:]
with blockcow.Device(device_path) as device:
    started = time.perf_counter()
    with device.backup(container="memory:64M", dest=dest) as backup:
        start_s = time.perf_counter() - started
        backup.wait()
# Not getrusage: its peak includes what the parent process held before this one was started.
peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
assert peak
status = backup.status()
figures = {"start_s": start_s, "peak_bytes": int(peak[1]) * 1024, "status": status.status, "hold_us": status.hold_us}
print(json.dumps(figures))
