"""What is made of a secret."""

from __future__ import annotations

import hashlib
import hmac
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol.keys import KEY_BYTES, Keys


def purposes(keys: Keys) -> list[bytes]:
    return [keys.server, keys.beacon, *map(keys.role, ("broker", "client", "node", "relay"))]


@given(st.binary(), st.binary())
def test_each_purpose_of_each_secret_has_a_key_of_its_own(one: bytes, other: bytes) -> None:
    made = purposes(Keys(one)) + (purposes(Keys(other)) if one != other else [])
    assert len(set(made)) == len(made)
    assert all(len(key) == KEY_BYTES for key in made)


def test_they_are_the_same_for_all_who_have_the_secret() -> None:
    """Peers of different releases must agree, so this can't change in a minor version."""
    assert purposes(Keys(b"s")) == purposes(Keys(b"s"))
    root = hmac.digest(b"dispy-v1", b"s", hashlib.sha256)
    assert Keys(b"s").server == hmac.digest(root, b"server\x01", hashlib.sha256)
    assert Keys(b"s").server.hex()[:16] == "7e8303e24a056f36"
    assert Keys(b"s").role("node").hex()[:16] == "9720c150d285e53e"


@given(st.binary(), st.binary())
def test_they_compare_by_value(one: bytes, other: bytes) -> None:
    assert (Keys(one) == Keys(other)) == (one == other)
    assert len({Keys(one), Keys(one)}) == 1
    assert Keys(one) != one


def test_they_never_leave_the_process() -> None:
    keys = Keys(b"secret")
    with pytest.raises(TypeError):
        pickle.dumps(keys)
    assert repr(keys) == "<Keys>" and not hasattr(keys, "__dict__")
