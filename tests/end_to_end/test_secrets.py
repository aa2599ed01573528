"""Real processes with a secret: all works, strangers are told why not, and nothing leaks."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from zmq.utils import z85

import dispy
from dispy import DispyJob
from dispy.operator import Operator, Unreachable
from dispy.protocol import secret as secrets
from dispy.protocol.secret import Secret

from .behind_relays import OWN_PEERS, direct_only
from .conftest import NewCluster, NewSharedCluster, RunProgram, StartBroker, StartNode
from .processes import MARK, BrokerProcess, NodeProcess
from .relays import RelayProcess
from .waiting import ended, finished, until

pytestmark = direct_only(OWN_PEERS)

REFUSED_S = 1.0  # a wrong secret is noticed within this time
SLACK_S = 4.0  # ... on a machine that is busy with other tests
ALIEN = secrets.new()
HUMAN = "correct horse battery staple"

PROGRAM = """
import os, sys, time
import dispy

def compute(n, gate):
    import os, time
    open(f"{gate}.{n}", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return n * n

node, gate, broker = sys.argv[1:4]
if broker:
    cluster = dispy.SharedJobCluster(compute, scheduler_node=broker, recover_file="jobs")
else:
    cluster = dispy.JobCluster(compute, nodes=[node] if node else None, recover_file="jobs")
for n in range(2):
    cluster.submit(n, gate)
cluster.wait()
"""


@pytest.fixture
def text() -> str:
    """The secret itself."""
    return secrets.new()


@pytest.fixture
def common(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Secret]:
    """A secret that all processes of a test find, but for those that are given another."""
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text(text)
    monkeypatch.delenv("DISPY_SECRET", raising=False)
    monkeypatch.setenv("DISPY_SECRET_FILE", str(file))
    yield secrets.read(text)
    dispy.process.end()  # with what it has for this secret


def square(n: int) -> int:
    return n * n


def environment() -> dict[str, str]:
    return dict(os.environ)


def long_enough(gate: Path) -> None:
    print("begun", flush=True)
    while not gate.exists():
        time.sleep(0.01)


def sends_file(name: str) -> str:
    with open(name) as file:
        text = file.read()
    with open("answer", "w") as file:
        file.write(text.upper())
    dispy_send_file("answer")  # type: ignore[name-defined]  # noqa: F821
    dispy_provisional_result("half")  # type: ignore[name-defined]  # noqa: F821
    return text


# -- all works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [secrets.new(), HUMAN], ids=["random", "human"])
def test_jobs_files_and_results(
    common: Secret, tmp_path: Path, start_node: StartNode, new_cluster: NewCluster
) -> None:
    node = start_node()
    cluster = new_cluster(square, node)
    assert [finished(cluster.submit(n)).result for n in range(20)] == [n * n for n in range(20)]
    (tmp_path / "question").write_text("what" * 50_000)
    told: list[Any] = []
    asking = new_cluster(
        sends_file,
        node,
        depends=[str(tmp_path / "question")],
        job_status=lambda job: told.append((job.status, job.result)),
    )
    assert finished(asking.submit("question")).result == "what" * 50_000
    assert (tmp_path / "answer").read_text() == "WHAT" * 50_000
    until(lambda: (DispyJob.ProvisionalResult, "half") in told, "the callback")


def test_cancel_and_live_output(
    common: Secret, start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    printed = threading.Event()
    cluster = new_cluster(
        long_enough, start_node(), job_output=lambda job, stream, text: printed.set()
    )
    job = cluster.submit(gate)
    assert printed.wait(30)
    assert cluster.cancel(job) == 0
    assert ended(job).status == DispyJob.Terminated


def test_a_private_node_and_its_jobs(common: Secret, new_cluster: NewCluster) -> None:
    found = finished(new_cluster(environment, dispy.LocalNode(1)).submit()).result
    assert not [name for name in found if name.endswith("_SECRET")]


def test_clusters_with_different_secrets_in_one_program(
    common: Secret, start_node: StartNode, new_cluster: NewCluster
) -> None:
    one, other = start_node(), start_node("--secret", ALIEN)
    clusters = [new_cluster(square, one), new_cluster(square, other, secret=ALIEN)]
    again = new_cluster(square, one, secret=(Path(os.environ["DISPY_SECRET_FILE"]).read_text()))
    jobs = [cluster.submit(3) for cluster in (*clusters, again)]
    assert [finished(job).result for job in jobs] == [9, 9, 9]
    assert clusters[0]._session is again._session
    assert clusters[0]._session is not clusters[1]._session


def test_a_node_that_dials(common: Secret, start_program: RunProgram, gate: Path) -> None:
    gate.touch()
    program = start_program(PROGRAM, "", str(gate), "")
    assert program.wait(60) == 0, program.log()


def test_a_killed_program_is_recovered(
    common: Secret, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    node = start_node()
    program = start_program(PROGRAM, node.address, str(gate), "")
    until(lambda: len(list(gate.parent.glob("gate.*"))) == 2, "two jobs that run")
    program.kill()
    file = program.folder / "jobs"
    lost = dispy.recover_jobs(file, timeout=1, secret=ALIEN)
    assert not [job for job in lost if job.status == DispyJob.Finished]
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(file)] == [0, 1]


def test_a_shared_broker_outlives_a_program(
    common: Secret,
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    gate: Path,
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    program = start_program(PROGRAM, "", str(gate), broker.address)
    until(lambda: len(list(gate.parent.glob("gate.*"))) == 2, "two jobs that run")
    program.kill()
    gate.touch()
    assert [job.result for job in dispy.recover_jobs(program.folder / "jobs")] == [0, 1]


def test_nodes_and_clients_of_a_broker_have_different_secrets(
    start_broker: StartBroker,
    start_node: StartNode,
    new_shared_cluster: NewSharedCluster,
) -> None:
    clients, nodes = secrets.new(), secrets.new()
    broker = start_broker("--cluster-secret", clients, "--node-secret", nodes)
    start_node("--broker", broker.for_nodes, "--secret", nodes)
    cluster = new_shared_cluster(square, broker, secret=clients)
    assert finished(cluster.submit(5)).result == 25
    for stranger in (nodes, ALIEN):
        with (
            pytest.raises(Unreachable, match="secret"),
            Operator(broker.address, 5.0, secrets.read(stranger).keys) as operator,
        ):
            operator.status()
    node = start_node("--broker", broker.for_nodes, "--secret", clients)
    until(lambda: "secret" in node.log().partition("dispy.node WARNING: broker")[2], "a refusal")


# -- strangers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ours, theirs", [("ours", "another"), ("ours", "none"), ("none", "another")]
)
def test_a_wrong_secret_is_said_at_both_sides_within_a_second(
    common: Secret,
    start_node: StartNode,
    new_cluster: NewCluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    ours: str,
    theirs: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("dispy"), "propagate", True)
    given = {"another": ("--secret", ALIEN), "none": ("--insecure",)}[theirs]
    node = start_node(*given)
    more: dict[str, Any] = {} if ours == "ours" else {"insecure": True}
    cluster = new_cluster(square, node, **more)
    begin = time.monotonic()
    job = cluster.submit(1)
    until(lambda: f"can't use node {node.address}" in caplog.text, "a complaint here")
    assert time.monotonic() - begin < REFUSED_S + SLACK_S
    assert "secret" in caplog.text.partition(f"can't use node {node.address}")[2]
    until(lambda: "secret" in node.log().partition("CPUs at ")[2].lower(), "a complaint there")
    assert time.monotonic() - begin < REFUSED_S + SLACK_S
    assert job.status == DispyJob.Created and "secret" in cluster.explain(job)


NO_ADDRESS_OF_THIS_MACHINE = """
import gc
import dispy
for _ in range(3):
    try:
        dispy.JobCluster(print, secret="a text of some length", host="203.0.113.1")
    except OSError as error:
        print(error)
    gc.collect()
"""


def test_a_program_whose_cluster_can_not_listen_goes_on() -> None:
    command = [sys.executable, "-c", NO_ADDRESS_OF_THIS_MACHINE]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.count("can't listen at 203.0.113.1") == 3


def test_what_needs_a_secret_says_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPY_SECRET", raising=False)
    for wrong in ({"nodes": ["192.0.2.1"]}, {"nodes": ["192.0.2.*"]}, {"host": "192.0.2.1"}):
        with pytest.raises(dispy.SecretNeededError) as raised:
            dispy.JobCluster(square, **wrong)
        assert "dispy secret new" in str(raised.value) and "insecure=True" in str(raised.value)


# -- nothing leaks -------------------------------------------------------------------------------


def test_a_secret_is_nowhere_to_be_seen(
    common: Secret,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start_broker: StartBroker,
    start_node: StartNode,
    start_program: RunProgram,
    gate: Path,
) -> None:
    """Neither itself nor what is derived from it: in no command line, log, file or journal."""
    broker = start_broker("-d")
    relay = RelayProcess(tmp_path, "--broker", broker.for_nodes, "-d")
    request.addfinalizer(relay.clear_away)
    nodes = [start_node("-d"), start_node("--broker", relay.for_nodes, "-d")]
    runs: list[Any] = [start_program(PROGRAM, nodes[0].address, str(gate), "")]
    runs.append(start_program(PROGRAM, "", str(gate), broker.address))
    until(lambda: len(list(gate.parent.glob("gate.*"))) == 2, "jobs that run")
    marks = {each.mark for each in (broker, relay, *nodes, *runs)}
    lines = command_lines(marks)
    assert len(lines) > len(marks)  # also of their children
    until(lambda: len(list(tmp_path.rglob("jobs"))) == 2, "files to recover both programs by")
    shown = [path.read_bytes() for path in files_below(tmp_path)]
    gate.touch()
    for program in runs:
        program.wait(60)
    relay.stop()
    shown += [line.encode() for line in lines]
    shown += [path.read_bytes() for path in files_below(tmp_path)]
    assert any(b"SQLite" in content for content in shown)  # the journal is among them
    for form in forms_of(common):
        assert not [content for content in shown if form in content]


def command_lines(marks: set[str]) -> list[str]:
    """Return those of all processes with one of these marks."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) in marks:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def files_below(folder: Path) -> list[Path]:
    """Return all files, but for the secret's own."""
    secret = Path(os.environ["DISPY_SECRET_FILE"])
    return [path for path in folder.rglob("*") if path.is_file() and path != secret]


def forms_of(common: Secret) -> list[bytes]:
    """Return in which forms a secret could be met."""
    keys = common.keys
    roles = [keys.role(role) for role in ("node", "client", "relay")]
    raw = [common._material, keys._root, keys.server, keys.beacon, *roles]
    text = Path(os.environ["DISPY_SECRET_FILE"]).read_bytes().strip()
    written = [
        (each.hex().encode(), base64.b64encode(each).rstrip(b"="), z85.encode(each)) for each in raw
    ]
    escaped = [repr(each)[2:-1].encode() for each in raw]
    return [text, text[7:], *raw, *escaped, *(form for forms in written for form in forms)]


def test_a_secret_that_is_looked_for_would_be_found(common: Secret, tmp_path: Path) -> None:
    """The test above would notice a leak."""
    (tmp_path / "leak").write_bytes(b"x" + common.keys.role("node") + b"y")
    contents = [path.read_bytes() for path in files_below(tmp_path)]
    assert any(form in content for form in forms_of(common) for content in contents)


def test_an_option_is_warned_of_and_not_saved(
    start_node: StartNode, tmp_path: Path, start_broker: StartBroker
) -> None:
    node = start_node("--secret", ALIEN)
    assert "can be seen by all users" in node.log() and ALIEN not in node.log()
    below = [" ".join(process.cmdline()) for process in node.relatives()]
    assert below and not [line for line in below if ALIEN in line]
    insecure: list[NodeProcess | BrokerProcess] = [start_node("--insecure")]
    insecure.append(start_broker("--insecure"))
    assert all("WARNING: INSECURE" in each.log() for each in insecure)
