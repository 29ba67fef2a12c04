"""`blockcow verify`: compares an image with its manifest and names what is damaged."""

from typing import Any

import click

from blockcow._blockcow import verify as verify_image
from blockcow.cli.progress import Meter, option_progress
from blockcow.cli.verb import MISMATCH, Verb, VerbFailedError, print_json, say
from blockcow.node import find
from blockcow.units import format_size

_MOST_SHOWN = 10


@click.command(cls=Verb)
@click.argument("image", type=click.Path(readable=False))
@click.option("--manifest", type=click.Path(readable=False), help="[default: IMAGE.manifest]")
@option_progress
def verify(image: str, manifest: str | None, progress: str, as_json: bool) -> None:
    """Checks IMAGE against its manifest. Exits 21 if it is damaged."""
    find(image, "image")
    with Meter("verify", progress, as_json) as meter:
        result = verify_image(image, manifest or f"{image}.manifest", lambda done, total: _show(meter, done, total))
    damaged = result["damaged"]
    if as_json:
        print_json("summary", {"status": "damaged" if damaged else "complete", "image": image, **result})
    if damaged:
        say_damaged(image, damaged)
        raise VerbFailedError(MISMATCH)
    if progress != "none":
        say(f"blockcow: {image} is as it was written: {format_size(result['bytes'])}, digest {result['digest']}")


def say_damaged(image: str, damaged: list[int]) -> None:
    """Names the damaged extents by offset."""
    more = f" and {len(damaged) - _MOST_SHOWN} more" if len(damaged) > _MOST_SHOWN else ""
    offsets = ", ".join(map(str, damaged[:_MOST_SHOWN]))
    count = "1 extent differs" if len(damaged) == 1 else f"{len(damaged)} extents differ"
    say(f"blockcow: {image} is damaged: {count} from the manifest, first at offset {damaged[0]}")
    say(f"  offsets: {offsets}{more}; use another copy of this backup")


def _show(meter: Meter, done: int, total: int) -> None:
    figures: dict[str, Any] = {"verb": "verify", "done_bytes": done, "total_bytes": total}
    meter.update(done, total, "", lambda: figures)
