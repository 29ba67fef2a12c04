"""`blockcow verify`: compares an image with its manifest and names what is damaged."""

from typing import Any

import click

from blockcow._blockcow import verify as verify_image
from blockcow.cli.progress import Meter, option_progress
from blockcow.cli.verb import MISMATCH, Verb, VerbFailedError, print_json, say
from blockcow.export import is_uri
from blockcow.node import find
from blockcow.units import format_size

_MOST_SHOWN = 10


@click.command(cls=Verb)
@click.argument("image", type=click.Path(readable=False))
@click.option("--manifest", type=click.Path(readable=False), help="[default: IMAGE.manifest]")
@option_progress
def verify(image: str, manifest: str | None, progress: str, as_json: bool) -> None:
    """Checks IMAGE (a file, block device or NBD URI) against its manifest. Exits 21 if it is damaged."""
    manifest = manifest_of(image, manifest)
    with Meter("verify", progress, as_json) as meter:
        result = verify_image(image, manifest, lambda done, total: _show(meter, done, total))
    damaged = result["damaged"]
    if as_json:
        print_json("summary", {"status": "damaged" if damaged else "complete", "image": image, **result})
    if damaged:
        say_damaged(image, damaged)
        raise VerbFailedError(MISMATCH)
    if progress != "none":
        say(f"blockcow: {image} is as it was written: {format_size(result['bytes'])}, digest {result['digest']}")


def manifest_of(image: str, manifest: str | None) -> str:
    """Where the manifest of an image is, which must be there or be named by an NBD URI."""
    if not is_uri(image):
        find(image, "image")
    elif manifest is None:
        raise ValueError(f"the image {image} is on an NBD server: say where its manifest is, with --manifest")
    return manifest or f"{image}.manifest"


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
