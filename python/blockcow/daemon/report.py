"""What attach tells people and programs: where the devices are."""

import sys
from typing import Any

import msgspec

from blockcow.daemon.served import Served
from blockcow.status import SCHEMA


def of(served: Served) -> dict[str, Any]:
    """The report of a daemon that has begun."""
    devices = [
        {"device": place.device, "path": place.path, "link": place.link, "file": place.file, "nbd": place.nbd}
        for place in served.state.places
    ]
    frontend = served.state.frontend
    return {"name": served.config.name, "frontend": frontend, "devices": devices, "warnings": served.warnings}


def say(report: dict[str, Any], as_json: bool) -> None:
    """Data on stdout, the rest on stderr."""
    for warning in report["warnings"]:
        sys.stderr.write(f"blockcow: warning: {warning}\n")
    if as_json:
        line = {"message_type": "attached", "schema": SCHEMA, **report}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    else:
        sys.stdout.writelines(f"{device['path']}\n" for device in report["devices"])
    sys.stdout.flush()
    if not as_json:
        sys.stderr.write(f"blockcow: attached as {report['name']} ({_means(report)}); 'blockcow status' shows more\n")


def _means(report: dict[str, Any]) -> str:
    device = report["devices"][0]
    if device["link"] is not None:
        return f"FUSE and a loop device, also {device['link']}"
    return "a file served by FUSE" if device["file"] is not None else "an NBD socket"
