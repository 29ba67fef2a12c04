"""Kinds of option values: sizes and times as people type them. What they mean is in blockcow.units."""

from collections.abc import Callable
from typing import Any

import click

from blockcow.units import parse_share, parse_size, parse_time


class Unit(click.ParamType[str]):
    """An option value that a parser of blockcow.units accepts; kept as the text that was typed."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name = name
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, found right."""
        try:
            self._check(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


SIZE = Unit("size", parse_size)
TIME = Unit("time", parse_time)
SHARE = Unit("percent", lambda text: parse_share(text, 2**63 - 1))


class Place(click.Path):
    """A path or another place, as typed. Several in one environment variable stand on lines of their own."""

    envvar_list_splitter = "\n"


PLACE = Place(readable=False)
