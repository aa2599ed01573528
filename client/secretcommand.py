"""``dispy secret``: make the secret that all machines share, show it, and say which one is used.

Only ``show`` prints it, since that is what it's for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

from dispy.protocol import secret as secrets
from dispy.protocol.commandline import SETTINGS
from dispy.protocol.secret import SecretError

CODES = """\b
Exit codes: 0 done; 1 there is a secret already, or none, or it can't be read or written;
2 wrong options.
"""
EPILOG = f"""\b
Examples:
  dispy secret new                     once, on one machine; then copy the file to the others
  dispy secret new --file lab.secret   for --secret-file or DISPY_SECRET_FILE
  dispy secret check                   which secret programs and commands would use here

{CODES}
"""
FILE = click.option(
    "--file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file  [default: the one that is looked for when nothing else is said]",
)


@click.group("secret", epilog=EPILOG, context_settings=SETTINGS)
def secret() -> None:
    """Make or show the secret that all machines share."""


@secret.command(epilog=CODES)
@FILE
@click.option("--force", is_flag=True, help="Replace the one that is there.")
def new(file: Path | None, force: bool) -> None:
    """Make a secret that can't be guessed, in a file that only you may read."""
    path = file or secrets.default_file()
    try:
        _write(path, secrets.new() + "\n", force)
    except FileExistsError:
        raise click.ClickException(
            f"there is a secret in {path} already; all machines need the same one, so copy that "
            "to the others, or replace it with --force"
        ) from None
    except OSError as error:
        raise click.ClickException(f"can't write {path}: {error.strerror or error}") from None
    click.echo(f"The secret is in {path}, which only you may read.")
    click.echo("Bring it to the same place on all other machines, for example with")
    click.echo(f"  ssh HOST mkdir -p -m 700 {_at_home(path.absolute().parent)}")
    click.echo(f"  scp -p {path.absolute()} HOST:{_at_home(path.absolute())}")
    if file is not None:
        click.echo(f"and name it there and here: --secret-file {file}, or DISPY_SECRET_FILE.")


@secret.command(epilog=CODES)
def show() -> None:
    """Print the secret that is used here, for copying it by hand."""
    try:
        text, source = secrets.find_text()
    except SecretError as error:
        raise click.ClickException(str(error)) from None
    if not source:
        raise click.ClickException(_none())
    click.echo(text)


@secret.command(epilog=CODES)
def check() -> None:
    """Say where the secret comes from that is used here, and whether it is good."""
    try:
        found = secrets.find()
    except SecretError as error:
        raise click.ClickException(str(error)) from None
    if found is None:
        raise click.ClickException(_none())
    click.echo(f"the secret comes from {found.source}")
    click.echo(found.warning or "it is fine")


def _none() -> str:
    return (
        f"there is no secret, neither in the environment ({secrets.TEXT_VARIABLE}, "
        f"{secrets.FILE_VARIABLE}) nor in {secrets.default_file()}: make one with "
        "'dispy secret new'. Until then only this machine can be reached"
    )


def _write(path: Path, text: str, force: bool) -> None:
    """Write a file that nobody else could ever read, all of it or nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w") as opened:
            opened.write(text)
        if force:
            beside.replace(path)
        else:
            os.link(beside, path)  # unlike a rename it fails if the other is there
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def _at_home(path: Path) -> str:
    """Return a path as others can use it: below their home, if it is below ours."""
    with suppress(ValueError, RuntimeError):
        return str(path.relative_to(Path.home()))
    return str(path)
