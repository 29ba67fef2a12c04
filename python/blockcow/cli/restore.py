"""`blockcow restore`: writes an image back to a device, after it was found undamaged."""

import click

from blockcow._blockcow import read_manifest
from blockcow._blockcow import restore as restore_image
from blockcow.cli.progress import Meter, option_progress
from blockcow.cli.verb import Verb, print_json, say
from blockcow.cli.verify import manifest_of, say_damaged
from blockcow.export import is_uri
from blockcow.node import Node, find, find_if_there
from blockcow.preflight import require_idle
from blockcow.signature import probe
from blockcow.units import format_size

_FORCES = ("damaged", "mounted")


@click.command(cls=Verb)
@click.argument("image", type=click.Path(readable=False))
@click.option(
    "--device", required=True, type=click.Path(readable=False), help="Block device or file that is overwritten."
)
@click.option("--manifest", type=click.Path(readable=False), help="[default: IMAGE.manifest]")
@click.option("--force", multiple=True, type=click.Choice(_FORCES), help="Override one refusal; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Check the device and the manifest, say what would be done, do nothing.")
@option_progress
def restore(
    image: str, device: str, manifest: str | None, force: tuple[str, ...], dry_run: bool, progress: str, as_json: bool
) -> None:
    """Writes IMAGE to a device, whose content is lost. Either may be an NBD URI.

    Refuses a damaged image, and a device that is mounted or in use.
    """
    manifest = manifest_of(image, manifest)
    needed = int(read_manifest(manifest)["size"])
    node = _check_device(device, image, needed, force)
    if dry_run:
        _say_plan(image, device, node, needed, as_json)
        return
    with Meter("restore", progress, as_json) as meter:
        result = restore_image(
            image,
            manifest,
            device,
            force_damaged="damaged" in force,
            force_mounted="mounted" in force,
            progress=lambda phase, done, total: _show(meter, phase, done, total),
        )
    if as_json:
        print_json("summary", {"status": "complete", "image": image, "device": device, **result})
    if result["damaged"]:
        say_damaged(image, result["damaged"])
    if progress != "none":
        say(f"blockcow: {device} is restored from {image}: {format_size(result['bytes'])}, synced to the device")


def _check_device(device: str, image: str, needed: int, force: tuple[str, ...]) -> Node | None:
    if is_uri(device):
        if device == image:
            raise ValueError(f"the device {device} is the image itself: name another")
        return None
    node = find_if_there(device, "device")
    if node is None:
        return None
    if not is_uri(image) and node.key == find(image, "image").key:
        raise ValueError(f"the device {device} is the image itself: name another")
    require_idle(node, ignore={"mounted"} if "mounted" in force else ())
    if node.is_block and node.size < needed:
        sizes = f"it holds {format_size(node.size)}, the image {format_size(needed)}"
        raise ValueError(f"the device {device} is too small: {sizes}; name a larger one")
    return node


def _say_plan(image: str, device: str, node: Node | None, needed: int, as_json: bool) -> None:
    if is_uri(device):
        content = "something that was not looked at"
    else:
        content = "nothing, it would be created" if node is None else _content(node)
    if as_json:
        print_json("plan", {"image": image, "device": device, "bytes": needed, "content": content})
        return
    click.echo("blockcow would restore this; nothing was done:")
    click.echo(f"  image   {image}, verified before the first write")
    click.echo(f"  device  {device}, which now holds {content}")
    click.echo(f"  bytes   {format_size(needed)} ({needed}) would be overwritten")


def _content(node: Node) -> str:
    try:
        return str(probe(node)) or "nothing that blkid knows"
    except LookupError as error:
        return f"something unknown ({error.args[0]})"


def _show(meter: Meter, phase: str, done: int, total: int) -> None:
    meter.update(
        done, total, phase, lambda: {"verb": "restore", "phase": phase, "done_bytes": done, "total_bytes": total}
    )
