"""The secret that peers of one cluster share: where it comes from, and how it is read.

Nothing here shows a secret, in no message and no `repr`. What is found in no file, environment
or option is no error: then there is none, and only this machine can be reached.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
import unicodedata
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import platformdirs

from .errors import DispyError
from .keys import KEY_BYTES, SALT, Keys

TEXT_VARIABLE = "DISPY_SECRET"
FILE_VARIABLE = "DISPY_SECRET_FILE"  # set but empty: don't look for the default file either
PREFIX = "dispy1_"
GENERATED = re.compile(PREFIX + "([A-Za-z0-9_-]{43})")
SHORT = 12  # characters; what is shorter is guessed by trying
FILE_BYTES_MAX = 1 << 16
OTHERS = stat.S_IRWXG | stat.S_IRWXO
# scrypt: 0.1 s and 32 MiB for each guess at a secret that a person made up.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1
SCRYPT_BYTES = 64 << 20
PRIVATE_KEY = re.compile(
    r"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY)-----(.*?)-----END \1-----", re.DOTALL
)
ZEROMQ_KEY = re.compile(r"^\s*secret-key\s*=\s*[\"'](\S{40})[\"']", re.MULTILINE)


class SecretError(DispyError, ValueError):
    """A secret can't be read; the text says why, and what to do."""


class Secret:
    """A secret. ``source`` says where it comes from, ``warning`` what is wrong with it, if any.

    Equal secrets compare equal, wherever they come from. Comparing and `keys` take 0.1 s for
    the first time when a person has made it up.
    """

    def __init__(self, material: bytes, source: str, is_strong: bool, warning: str = "") -> None:
        self._material = material
        self._is_strong = is_strong
        self.source = source
        self.warning = warning

    @cached_property
    def keys(self) -> Keys:
        """What is used instead of the secret itself."""
        if self._is_strong:
            return Keys(self._material)
        return Keys(
            hashlib.scrypt(
                self._material,
                salt=SALT,
                n=SCRYPT_N,
                r=SCRYPT_R,
                p=SCRYPT_P,
                maxmem=SCRYPT_BYTES,
                dklen=KEY_BYTES,
            )
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(self.keys)

    def __repr__(self) -> str:
        return f"<Secret of {self.source}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is never pickled: it would leave the process")


def new() -> str:
    """Return a random secret of 256 bits as text."""
    return PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()


def read(text: str, source: str = "what was given") -> Secret:
    """Return the secret that a text stands for; space around it doesn't count.

    Raises `SecretError` when it is empty, or a damaged copy of what `new` makes.
    """
    text = text.strip()
    if not text:
        raise SecretError(f"the secret in {source} is empty")
    if text.startswith(PREFIX):
        found = GENERATED.fullmatch(text)
        if found is None:
            raise SecretError(
                f"the secret in {source} is damaged: after {PREFIX} there must be 43 letters, "
                f"digits, - or _, and there are {len(text) - len(PREFIX)} characters"
            )
        return Secret(base64.urlsafe_b64decode(found[1] + "="), source, True)
    warning = ""
    if len(text) < SHORT:
        warning = (
            f"the secret in {source} has less than {SHORT} characters: who records one connection "
            "can find it by trying; 'dispy secret new' makes one that can't be found"
        )
    return Secret(unicodedata.normalize("NFC", text).encode(), source, False, warning)


def from_key_files(certfile: str = "", keyfile: str = "") -> Secret:
    """Return the secret that a private key is: of ``keyfile``, or else of ``certfile``.

    Files may be PEM, or certificates of ZeroMQ. All peers need the same one. Raises `SecretError`
    when there is no private key, or when others may read it.
    """
    paths = [Path(name) for name in (keyfile, certfile) if name]
    for path in paths:
        text, mode = _read_file(path)
        key = _private_key(text, path)
        if key:
            expect_private(path, mode)  # a certificate alone is for everybody
            return Secret(key, str(path), True)
    raise SecretError(
        f"there is no private key in {' or '.join(map(str, paths))}: name the file that begins "
        "with '-----BEGIN PRIVATE KEY-----', the same for all peers"
    )


def from_file(path: Path) -> Secret:
    """Return the secret that a file holds. Raises `SecretError`, also when others may read it."""
    return read(_read_private(path), str(path))


def default_file() -> Path:
    """Return where a secret is looked for when nothing else is said."""
    return Path(platformdirs.user_config_dir("dispy")) / "secret"


def find(text: str = "", file: str = "", keyfile: str = "", certfile: str = "") -> Secret | None:
    """Return the secret to use: what is given here, else of the environment, else the default.

    None when there isn't any. Of several that are given, the first of the parameters counts.
    Raises `SecretError` for one that can't be read, such as a named file that doesn't exist.
    """
    if text:
        return read(text)
    if file:
        return from_file(Path(file).expanduser())
    if keyfile or certfile:
        return from_key_files(certfile, keyfile)
    text, source = find_text()
    return read(text, source) if source else None


def find_text() -> tuple[str, str]:
    """Return the secret of the environment or the default file, and where it is from.

    Both are empty if there isn't any. Raises `SecretError`.
    """
    if os.environ.get(TEXT_VARIABLE):
        return os.environ[TEXT_VARIABLE].strip(), TEXT_VARIABLE
    named = os.environ.get(FILE_VARIABLE)
    path = Path(named).expanduser() if named else default_file()
    if named:
        return _read_named(path).strip(), str(path)
    if named is None and path.exists():
        return _read_private(path).strip(), str(path)
    return "", ""


def _read_named(path: Path) -> str:
    """Return the text of the file that the environment names."""
    try:
        return _read_private(path)
    except SecretError as error:
        if isinstance(error.__context__, FileNotFoundError):
            raise SecretError(
                f"{FILE_VARIABLE} names {path}: No such file. Copy the secret of your other "
                f"machines there, make one with 'dispy secret new --file {path}', or unset "
                f"{FILE_VARIABLE}"
            ) from None
        raise


def _private_key(text: str, path: Path) -> bytes:
    """Return the bytes of the private key in a file's text; none: there isn't one."""
    zeromq = ZEROMQ_KEY.search(text)
    if zeromq is not None:
        return b"zeromq " + zeromq[1].encode()
    pem = PRIVATE_KEY.search(text)
    if pem is None:
        return b""
    kind, body = pem.groups()
    if "ENCRYPTED" in kind or "ENCRYPTED" in body:
        raise SecretError(
            f"the private key in {path} is encrypted, and nobody is asked for its password: "
            "decrypt it into a file that only you may read"
        )
    try:
        return b"pem " + base64.b64decode("".join(body.split()), validate=True)
    except ValueError:
        raise SecretError(f"the private key in {path} is damaged") from None


def expect_private(path: Path, mode: int) -> None:
    """Raise `SecretError` if others may read a file with a secret in it."""
    if os.name == "posix" and mode & OTHERS:
        raise SecretError(
            f"others may read {path}, so what is in it is no secret: run "
            f"'chmod 600 {path}', and if others have accounts here, replace it"
        )


def _read_private(path: Path) -> str:
    """Return the text of a file that nobody else may read."""
    text, mode = _read_file(path)
    expect_private(path, mode)
    return text


def _read_file(path: Path) -> tuple[str, int]:
    """Return the text of a file and its mode."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SecretError(f"can't read {path}: {error.strerror or error}") from None
    if len(content) > FILE_BYTES_MAX:
        raise SecretError(f"{path} is too long to be a secret")
    try:
        return content.decode(), mode
    except UnicodeDecodeError:
        raise SecretError(f"{path} is no text, so it is no secret") from None
