"""What a node tells of its machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dispy.node.vitals import Gauge

IMPORTS = "import sys, dispy.node.daemon; sys.exit('psutil' in sys.modules)"


def test_a_gauge_tells_what_there_is(tmp_path: Path) -> None:
    gauge = Gauge(tmp_path)
    for _ in range(2):
        vitals = gauge.read()
        assert vitals is not None
        assert 0.0 <= vitals.cpu <= 100.0 and 0.0 <= vitals.swap <= 100.0
        assert vitals.memory > 0 and vitals.disk > 0


def test_a_gauge_whose_folder_is_gone_says_nothing(tmp_path: Path) -> None:
    assert Gauge(tmp_path / "nowhere").read() is None


def test_a_node_starts_without_psutil() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=60)
