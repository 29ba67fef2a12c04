"""The figures of a daemon in the text format of Prometheus."""

from collections.abc import Iterable
from typing import Any

from blockcow.daemon.backups import Backups
from blockcow.daemon.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_STATES = ("passing", "holding", "backing-up")
_KINDS = ("read", "write", "zero", "discard", "flush")
_BACKUP_GAUGES = {
    "suspended_now": ("suspended_writes_now", "Writes that are suspended at this moment."),
    "container_used_bytes": ("container_used_bytes", "What the container holds."),
    "container_capacity_bytes": ("container_capacity_bytes", "The selected capacity of the container."),
    "done_bytes": ("done_bytes", "Bytes of the device with which the sweep is done."),
}
_BACKUP_COUNTERS = {
    "suspended_writes": ("suspended_writes_total", "Writes that were suspended and have gone on."),
    "drains": ("drains_total", "How often the selected capacity was reached."),
    "dest_written_bytes": ("dest_written_bytes_total", "Bytes written to the destination."),
    "blocks_swept": ("blocks_swept_total", "Blocks that the sweep copied straight from the device."),
    "blocks_copied_before_write": ("blocks_copied_before_write_total", "Blocks that went through the container."),
}

_NO_KEEPER = "the keeper was killed: if the worker dies as well, programs get errors; detach and attach when you can"

Sample = tuple[str, dict[str, str], float]


def render(served: Served, backups: Backups) -> str:
    """All metrics."""
    lines: list[str] = []
    _family(lines, "up", "gauge", "The worker serves.", [("", {}, 1)])
    _family(lines, "worker_restarts_total", "counter", "Workers that were replaced.", [("", {}, backups.restarts)])
    counters = {device.path: device.counters() for device in served.devices}
    states = [
        ("", {"device": device.path, "state": state}, float(device.state == state))
        for device in served.devices
        for state in _STATES
    ]
    _family(lines, "device_state", "gauge", "1 for the state that the driver is in.", states)
    _family(lines, "device_bytes", "gauge", "Size.", [("", {"device": d.path}, d.size) for d in served.devices])
    for what in ("requests", "bytes", "errors"):
        samples = [
            ("", {"device": path, "kind": kind}, named[f"{kind}_{what}"])
            for path, named in counters.items()
            for kind in _KINDS
        ]
        _family(lines, f"{what}_total", "counter", f"{what.capitalize()} of programs, since the worker began.", samples)
    _histogram(lines, counters)
    _backups(lines, backups)
    connections = served.server.connections() if served.server is not None else 0
    _family(lines, "nbd_connections", "gauge", "NBD clients that are connected.", [("", {}, connections)])
    return "\n".join(lines) + "\n"


def _histogram(lines: list[str], counters: dict[str, dict[str, int]]) -> None:
    samples: list[Sample] = []
    for path, named in counters.items():
        buckets = {
            name.removeprefix("suspended_le_"): n for name, n in named.items() if name.startswith("suspended_le_")
        }
        for end, count in sorted(buckets.items(), key=lambda bucket: float(bucket[0])):
            edge = "+Inf" if end == "inf" else f"{int(end) / 1e6:g}"
            samples.append(("_bucket", {"device": path, "le": edge}, count))
        samples.append(("_sum", {"device": path}, named["suspended_us"] / 1e6))
        samples.append(("_count", {"device": path}, buckets["inf"]))
    _family(lines, "suspended_seconds", "histogram", "How long writes were suspended.", samples)


def _backups(lines: list[str], backups: Backups) -> None:
    entries = backups.all()
    counts = dict.fromkeys(("created", "active", "complete", "broken", "cancelled"), 0)
    parts = []
    for entry in entries:
        status = entry.status()
        counts[status["status"]] += 1
        if not status["over"]:
            parts += [({"device": part["device"], "backup": entry.id}, part) for part in status["parts"]]
    samples: list[Sample] = [("", {"status": status}, count) for status, count in counts.items()]
    _family(lines, "backups", "gauge", "Backups under way and the newest that have ended, by status.", samples)
    for kind, names in (("gauge", _BACKUP_GAUGES), ("counter", _BACKUP_COUNTERS)):
        for key, (name, text) in names.items():
            _family(lines, f"backup_{name}", kind, text, [("", labels, part[key]) for labels, part in parts])


def _family(lines: list[str], name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
    lines += [f"# HELP blockcow_{name} {text}", f"# TYPE blockcow_{name} {kind}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(content)}"' for label, content in labels.items())
        lines.append(
            f"blockcow_{name}{suffix}{f'{{{inside}}}' if inside else ''} {value:g}"
            if value != int(value)
            else f"blockcow_{name}{suffix}{f'{{{inside}}}' if inside else ''} {int(value)}"
        )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def status(served: Served, backups: Backups, pids: dict[str, int]) -> dict[str, Any]:
    """What `GET /status` answers."""
    return {
        "name": served.config.name,
        "frontend": served.state.frontend,
        "can_restart": all(export.can_resend for export in served.exports),
        **pids,
        "worker_restarts": backups.restarts,
        "warnings": served.warnings + ([] if served.store.has_keeper else [_NO_KEEPER]),
        "footing": served.footing.as_dict() if served.footing is not None else {},
        "devices": [
            {
                "device": place.device,
                "path": place.path,
                "file": place.file,
                "nbd": place.nbd,
                "size": device.size,
                "sector": device.logical_block_size,
                "state": device.state,
                "counters": device.counters(),
            }
            for place, device in zip(served.state.places, served.devices, strict=True)
        ],
        "backups": [entry.status() for entry in backups.all()],
    }
