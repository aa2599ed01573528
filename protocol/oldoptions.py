"""Commands under the names and with the options that dispy had, for scripts that use them.

A table says what has become of each option. What means nothing any more is accepted, and said
in a line of the log; what this release can't do is refused, rather than left out in silence.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import configfile, logs

NOTHING = {"", "0", "false", "none"}  # values in old files of options that weren't used


class Old(NamedTuple):
    """An option; just one of ``to``, ``gone`` and ``refused`` says what becomes of it."""

    names: str  # separated by spaces; the long ones are also its keys in files
    to: str = ""  # the option that it is now
    gone: str = ""  # why it means nothing any more
    refused: str = ""  # why it can't be had
    is_flag: bool = False
    is_many: bool = False  # may be repeated

    @property
    def key(self) -> str:
        """Its first long name."""
        return self.keys[0]

    @property
    def keys(self) -> list[str]:
        """All of its long names, as in files."""
        return [name[2:] for name in self.names.split() if name.startswith("--")]


COMMON = [  # of nodes and schedulers
    Old("-d --debug", to="--debug", is_flag=True),
    Old("-i --host --ip_addr --hosts", to="--host", is_many=True),
    Old("--ext_host --ext_ip_addr --ext_hosts", to="--ext-host", is_many=True),
    Old("--max_file_size", to="--max-file-size"),
    Old("--zombie_interval", to="--zombie-interval"),
    Old("--ping_interval", to="--ping-interval"),
    Old("--ipv4_udp_multicast", to="--ipv4-udp-multicast", is_flag=True),
    Old("--clean", to="--clean", is_flag=True),
    Old("--daemon", to="--daemon", is_flag=True),
    Old("--msg_timeout", gone="a broken connection is made anew, without time limits"),
]


class Now(NamedTuple):
    """What an old command line means."""

    arguments: list[str]  # for the new command
    notes: list[str]  # a line for each option that means nothing any more


def translate(command: str, new: str, table: Sequence[Old], arguments: Sequence[str]) -> Now:
    """Return what the old ``command`` means for the ``new`` one.

    What the table doesn't know is passed on. Exits like any command if an option is wrong or
    can't be had.
    """
    parser = _parser(command, new, table)
    given, rest = parser.parse_known_args(list(arguments))
    if given.config:
        rest = [*_from_file(parser, table, given), *rest]
    now: list[str] = []
    notes: list[str] = []
    for old in table:
        value = getattr(given, old.key)
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                _take(parser, old, each, now, notes)
    if given.save_config:
        now.append(f"--save-config={given.save_config}")
    return Now([*now, *rest], notes)


def become(
    command: str, new: str, table: Sequence[Old], logger: str, main: Callable[..., object]
) -> None:
    """Run the ``new`` command for the old one, with the arguments of this process.

    What means nothing any more is said in the log, by ``logger``.
    """
    now = translate(command, new, table, sys.argv[1:])
    for note in now.notes:
        logs.later(logger, note)
    main(now.arguments, prog_name=new)


def _take(
    parser: argparse.ArgumentParser, old: Old, value: str | bool, now: list[str], notes: list[str]
) -> None:
    name = f"--{old.key}"
    if old.to:
        now.append(old.to if old.is_flag else f"{old.to}={value}")
    elif old.gone:
        notes.append(f"{name} means nothing any more: {old.gone}")
    elif str(value).lower() not in NOTHING:
        parser.error(f"{name}: {old.refused}")


def _from_file(
    parser: argparse.ArgumentParser, table: Sequence[Old], given: argparse.Namespace
) -> list[str]:
    """Fill in what the command line doesn't say; return what is no old option."""
    try:
        found = configfile.read(given.config)
    except configfile.ConfigError as error:
        parser.error(str(error))
    keys = {key: old for old in table for key in old.keys}
    rest: list[str] = []
    for key, values in found.items():
        old = keys.get(key)
        values = [value for value in values if old is None or _counts(old, value)]
        if old is None:
            rest += [f"--{key}={value}" for value in values]
        elif values and getattr(given, old.key) is None:
            setattr(given, old.key, values if old.is_many else old.is_flag or values[-1])
    return rest


def _counts(old: Old, value: str) -> bool:
    """Whether a value in a file says anything; old files have all options."""
    if old.to and not old.is_flag:
        return value.lower() != "none"
    return value.lower() not in NOTHING


def _parser(command: str, new: str, table: Sequence[Old]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        command,
        description=f"The old name of {new}, with its old options; others are passed on to it.",
    )
    own = [Old("--config", to="this file's options"), Old("--save_config", to="--save-config")]
    for old in [*own, *table]:
        more: dict[str, Any] = {"action": "append"} if old.is_many else {}
        if old.is_flag:
            more = {"action": "store_true", "default": None}
        now = old.to and f"now {old.to}"
        text = now or (old.refused and f"refused: {old.refused}") or f"ignored: {old.gone}"
        parser.add_argument(*_spellings(old), dest=old.key, help=text, **more)
    return parser


def _spellings(old: Old) -> list[str]:
    names = old.names.split()
    dashed = [f"--{name[2:].replace('_', '-')}" for name in names if "_" in name]
    return [*names, *dashed]
