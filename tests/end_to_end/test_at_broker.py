"""What `JobCluster` does, SharedJobCluster does at a broker of its own process: the same tests.

A part of them, here always; all of them with DISPY_TEST_SHARED=1. See `at_broker`.
"""

from __future__ import annotations

from . import test_live_output, test_values

AT_A_BROKER = True
MODULES = (test_live_output, test_values)
FIXTURES = {"gate": test_live_output.gate}

for module in MODULES:
    for name, thing in vars(module).items():
        if name.startswith("test_") and callable(thing):
            assert name not in globals(), f"{name} is in two modules"
            globals()[name] = thing
globals().update(FIXTURES)
