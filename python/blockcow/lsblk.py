"""What lsblk says on block devices: type and model. Sizes, uses and partitions come from sysfs."""

import msgspec

from blockcow import programs


class Description(msgspec.Struct, frozen=True):
    """One block device as lsblk describes it."""

    kname: str
    type: str
    model: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    blockdevices: list[Description]


def describe() -> dict[str, Description]:
    """Descriptions by kernel name. Raises LookupError with the reason where lsblk cannot be asked."""
    result = programs.run("lsblk", ["--json", "--list", "--all", "-o", "KNAME,TYPE,MODEL"])
    if result is None:
        raise LookupError("the program lsblk (package util-linux) is missing")
    try:
        answer = msgspec.json.decode(result.stdout, type=_Answer)
    except msgspec.DecodeError as error:
        reason = result.stderr.strip() or str(error)
        raise LookupError(f"lsblk gave no usable answer: {reason}") from error
    return {description.kname: description for description in answer.blockdevices}
