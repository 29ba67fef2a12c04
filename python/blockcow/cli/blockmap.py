"""Draws the block map of a backup: one character a stretch of the device, by what most of its blocks are."""

from rich.text import Text

CELLS = (4, 64)
"""Rows and columns."""
_STATES = (
    ("still to do", "·", "dim"),
    ("in the container", "▒", "red"),
    ("copied before write", "▓", "yellow"),
    ("copied by the sweep", "█", "green"),
)


def draw(cells: list[tuple[int, int, int, int]]) -> Text:
    """The map, row by row. A stretch none of whose blocks is on the list is blank."""
    text = Text()
    columns = CELLS[1]
    for number, counts in enumerate(cells):
        if number and number % columns == 0:
            text.append("\n")
        if not any(counts):
            text.append(" ")
            continue
        _name, character, style = _STATES[counts.index(max(counts))]
        text.append(character, style)
    return text


def legend() -> Text:
    """What the characters mean."""
    text = Text()
    for name, character, style in reversed(_STATES):
        text.append(character, style)
        text.append(f" {name}   ")
    return text


def shares(cells: list[tuple[int, int, int, int]]) -> str:
    """The same in words, for output that is piped."""
    sums = [sum(column) for column in zip(*cells, strict=True)]
    whole = sum(sums) or 1
    return ", ".join(
        f"{100 * count // whole}% {name}" for count, (name, *_) in reversed(list(zip(sums, _STATES, strict=True)))
    )
