"""Options of a command in a file: what ``--config`` reads and ``--save-config`` writes.

An ini file with one section, DEFAULT, as dispy has always had; its keys are the long names of
options, its values are as on the command line. What may be repeated has a line for each value.
Nothing in it is executed. `read_options` is the callback of click's ``--config``, and a command
that was given ``--save-config`` calls `save_options` with its context.
"""

from __future__ import annotations

import ast
import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DispyError

OWN = {"config", "save_config", "help", "version"}  # never in such a file
SECRETS = {"secret", "cluster_secret", "node_secret"}  # never written, but read
SECTION = "DEFAULT"


class ConfigError(DispyError, ValueError):
    """A file can't be read as one of options; the message says which and why."""


def read(path: str | Path) -> dict[str, list[str]]:
    """Return the values by the name of the option, with underscores; empty ones are left out.

    Raises `ConfigError`.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path} is no file of options: {text}") from None
    if parser.sections():
        raise ConfigError(
            f"{path}: [{parser.sections()[0]}] is unknown; the section is [{SECTION}]"
        )
    values = {name.replace("-", "_"): _values(text) for name, text in parser.defaults().items()}
    return {name: each for name, each in values.items() if each}


def _values(text: str) -> list[str]:
    """Return the lines; older files have a list as Python writes it."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]  # an IPv6 address
        return [str(each) for each in listed if each not in ("", None)]
    return [line.strip() for line in text.splitlines() if line.strip()]


def write(path: str | Path, values: Mapping[str, object]) -> None:
    """Write such a file. Raises `OSError`."""
    parser = configparser.ConfigParser(interpolation=None)
    for name, value in values.items():
        lines = value if isinstance(value, (list, tuple)) else [value]
        parser[SECTION][name] = "\n".join(map(str, lines))
    with open(path, "w", encoding="utf-8") as file:
        parser.write(file)


# -- for click ---------------------------------------------------------------------------------


def read_options(context: Any, parameter: Any, path: str | None) -> None:
    """Take what the file says for what the command line doesn't; ``is_eager``."""
    import click

    if not path:
        return
    try:
        found = read(path)
    except ConfigError as error:
        raise click.BadParameter(str(error), context, parameter) from None
    _expect_private(context, parameter, path, found)
    options = _options(context.command)
    defaults: dict[str, object] = {}
    for name, values in found.items():
        option = options.get(name)
        if option is None:
            raise click.BadParameter(f"{path}: there is no option {name}", context, parameter)
        if len(values) > 1 and not option.multiple:
            raise click.BadParameter(f"{path}: {name} has several values", context, parameter)
        defaults[option.name] = values if option.multiple else values[0]
    context.default_map = {**(context.default_map or {}), **defaults}


def _expect_private(context: Any, parameter: Any, path: str, found: Mapping[str, object]) -> None:
    """Refuse a file with a secret that others may read, as all such files are."""
    import click

    from .secret import SecretError, expect_private

    try:
        if SECRETS & found.keys():
            expect_private(Path(path), os.stat(path).st_mode)
    except (SecretError, OSError) as error:
        raise click.BadParameter(str(error), context, parameter) from None


def save_options(context: Any, path: str) -> None:
    """Write what the command line and its ``--config`` say, but no secret, then exit."""
    import click
    from click.core import ParameterSource

    given = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    values = {
        name: context.params[option.name]
        for name, option in _options(context.command).items()
        if context.get_parameter_source(option.name) in given and name not in SECRETS
    }
    try:
        write(path, values)
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from None
    sys.exit(0)


def _options(command: Any) -> dict[str, Any]:
    """Return the options by their first long name, with underscores."""
    options = {}
    for option in command.params:
        name = next((each for each in option.opts if each.startswith("--")), "--")[2:]
        if name and name.replace("-", "_") not in OWN:
            options[name.replace("-", "_")] = option
    return options
