"""No test uses the secret of whoever runs the tests, nor listens to other machines.

``DISPY_TEST_SECRET=1`` plays all tests from the outside with a secret: processes find it in the
environment, as clusters of the test's own process do. It is a new one in each process that runs
tests, else those of one would find the nodes of another.
"""

from __future__ import annotations

import os

from dispy.protocol import secret as secrets

os.environ.pop("DISPY_SECRET", None)
os.environ["DISPY_SECRET_FILE"] = ""  # not even the default one
os.environ["DISPY_HOST"] = "127.0.0.1"  # with a secret it would be all addresses
if os.environ.get("DISPY_TEST_SECRET"):
    os.environ["DISPY_SECRET"] = secrets.new()
