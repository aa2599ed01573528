"""Where a secret comes from, how it is read, and that it shows nothing of itself."""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol import secret
from dispy.protocol.secret import SecretError

DER = b"not really a key, but bytes enough for one"
PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"
KEY = PEM.format("PRIVATE KEY", base64.encodebytes(DER).decode().strip())
CERTIFICATE = PEM.format("CERTIFICATE", base64.encodebytes(b"for all to see").decode().strip())
ZEROMQ = """
metadata
curve
    public-key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
    secret-key = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"
"""


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this user's is looked at."""
    monkeypatch.delenv("DISPY_SECRET", raising=False)
    monkeypatch.delenv("DISPY_SECRET_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def private(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_new_ones_are_long_and_differ() -> None:
    one, other = secret.new(), secret.new()
    assert one != other and len(one) == len("dispy1_") + 43
    assert secret.read(one).keys != secret.read(other).keys
    assert not secret.read(one).warning


def test_new_ones_take_no_time_and_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    scrypt: Callable[..., bytes] = hashlib.scrypt

    def counted(*arguments: Any, **options: Any) -> bytes:
        calls.append((options["n"], options["r"], options["p"]))
        return scrypt(*arguments, **options)

    monkeypatch.setattr(hashlib, "scrypt", counted)
    assert secret.read(secret.new()).keys and not calls
    human = secret.read("correct horse battery staple")
    assert not calls, "only when it is needed"
    assert human.keys == human.keys
    assert calls == [(1 << 15, 8, 1)]


def test_the_same_text_is_the_same_secret_wherever_it_comes_from(tmp_path: Path) -> None:
    text = "correct horse battery staple"
    file = secret.from_file(Path(private(tmp_path / "s", f"  {text}\n")))
    given_one = secret.read(text)
    assert file == given_one and hash(file) == hash(given_one) and len({file, given_one}) == 1
    assert file != secret.read(text + "!") and file != text
    # An accent may be typed as one character or as two.
    assert secret.read("caf\u00e9 au lait noir") == secret.read("cafe\u0301 au lait noir")


@pytest.mark.parametrize("text, is_short", [("x" * 11, True), ("x" * 12, False)])
def test_short_ones_are_warned_of(text: str, is_short: bool) -> None:
    warning = secret.read(text, "DISPY_SECRET").warning
    assert bool(warning) == is_short
    if is_short:
        assert "12 characters" in warning and "dispy secret new" in warning and text not in warning


@given(st.text(min_size=1).filter(lambda text: text.strip() and not text.startswith("dispy1_")))
def test_any_text_is_a_secret_and_never_shown(text: str) -> None:
    made = secret.read("  " + text)
    shown = f"{made!r} {made} {made.source} {made.warning}"
    assert len(text.strip()) < 4 or text.strip() not in shown


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[:20] + "+" + t[21:]]
)
def test_damaged_copies_are_told(change: object) -> None:
    damaged = change(secret.new())  # type: ignore[operator]
    with pytest.raises(SecretError, match="damaged") as raised:
        secret.read(damaged, "here")
    assert damaged[7:20] not in str(raised.value) and "here" in str(raised.value)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_one_is_an_error(text: str) -> None:
    with pytest.raises(SecretError, match="empty"):
        secret.read(text)


def test_it_is_never_pickled() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(secret.read(secret.new()))


# -- where it comes from --------------------------------------------------------------------------


def test_there_may_be_none() -> None:
    assert secret.find() is None


def test_what_is_given_comes_before_the_environment_and_that_before_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    default = private(secret.default_file(), "in the default file")
    assert default.startswith(str(tmp_path / "config"))

    def source() -> str:
        found = secret.find()
        assert found is not None
        return found.source

    assert source() == default
    named = private(tmp_path / "named", "in a named file")
    monkeypatch.setenv("DISPY_SECRET_FILE", named)
    assert source() == named
    monkeypatch.setenv("DISPY_SECRET", "in the environment")
    assert source() == "DISPY_SECRET"
    keyfile, file = private(tmp_path / "key.pem", KEY), private(tmp_path / "file", "in this file")
    assert secret.find(keyfile=keyfile) == secret.from_key_files(keyfile=keyfile)
    assert secret.find(file=file, keyfile=keyfile) == secret.read("in this file")
    assert secret.find("given as text", file, keyfile) == secret.read("given as text")


def test_an_empty_variable_keeps_from_looking_for_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private(secret.default_file(), "in the default file")
    monkeypatch.setenv("DISPY_SECRET_FILE", "")
    assert secret.find() is None


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(SecretError, match="missing: No such file"):
        secret.find(file=missing)
    monkeypatch.setenv("DISPY_SECRET_FILE", missing)
    with pytest.raises(SecretError, match="missing: No such file") as raised:
        secret.find()
    assert f"dispy secret new --file {missing}" in str(raised.value)
    assert str(raised.value).startswith("DISPY_SECRET_FILE names")
    monkeypatch.setenv("DISPY_SECRET_FILE", str(tmp_path))  # it is there, and no file
    with pytest.raises(SecretError, match=r"can't read .*: Is a directory$"):
        secret.find()


@pytest.mark.skipif(os.name != "posix", reason="permissions of files are other ones here")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = Path(private(tmp_path / "s", "correct horse battery"))
    path.chmod(mode)
    with pytest.raises(SecretError, match=f"chmod 600 {path}") as raised:
        secret.find(file=str(path))
    assert "horse" not in str(raised.value)
    path.chmod(0o400)
    assert secret.find(file=str(path)) == secret.read("correct horse battery")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x" * 70_000, b""])
def test_what_is_no_secret_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SecretError, match="s"):
        secret.from_file(path)


# -- key files ------------------------------------------------------------------------------------


def test_a_private_key_is_a_secret(tmp_path: Path) -> None:
    keyfile = private(tmp_path / "key.pem", KEY)
    certfile = private(tmp_path / "cert.pem", CERTIFICATE)
    both = private(tmp_path / "both.pem", CERTIFICATE + KEY)
    one = secret.from_key_files(certfile, keyfile)
    assert one == secret.from_key_files(both) == secret.from_key_files(keyfile=keyfile)
    assert not one.warning and DER.decode() not in repr(one)
    other = private(tmp_path / "other.pem", KEY.replace("bm90", "bm91"))
    assert one != secret.from_key_files(keyfile=other)


def test_how_the_lines_are_broken_makes_no_difference(tmp_path: Path) -> None:
    joined = PEM.format("PRIVATE KEY", base64.b64encode(DER).decode()).replace("\n", "\r\n")
    assert secret.from_key_files(keyfile=private(tmp_path / "a", KEY)) == secret.from_key_files(
        keyfile=private(tmp_path / "b", "a comment\n" + joined)
    )


def test_a_certificate_of_zeromq_is_a_secret(tmp_path: Path) -> None:
    one = secret.from_key_files(private(tmp_path / "x.key_secret", ZEROMQ))
    assert one != secret.from_key_files(private(tmp_path / "y", ZEROMQ.replace("D:)", "E:)")))


@pytest.mark.parametrize(
    "text, says",
    [
        (CERTIFICATE, "there is no private key"),
        (KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), "is encrypted"),
        (KEY.replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n", 1), "is encrypted"),
        (KEY.replace("\n", "\n!", 1), "is damaged"),
    ],
)
def test_files_without_a_usable_key_are_told(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SecretError, match=says):
        secret.from_key_files(private(tmp_path / "c.pem", text))


@pytest.mark.skipif(os.name != "posix", reason="permissions of files are other ones here")
def test_a_key_must_be_private_and_a_certificate_needn_t(tmp_path: Path) -> None:
    keyfile, certfile = tmp_path / "key.pem", tmp_path / "cert.pem"
    private(keyfile, KEY), private(certfile, CERTIFICATE)
    certfile.chmod(0o644)
    assert secret.from_key_files(str(keyfile)) == secret.from_key_files(str(certfile), str(keyfile))
    keyfile.chmod(0o644)
    with pytest.raises(SecretError, match="chmod 600"):
        secret.from_key_files(str(certfile), str(keyfile))
