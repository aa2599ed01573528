"""``dispy doctor`` with real nodes and brokers, with and without secrets, and with strangers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

import dispy

from .behind_relays import OWN_PEERS, direct_only
from .conftest import NewProxy, StartBroker, StartNode
from .processes import free_port
from .waiting import until

pytestmark = direct_only(OWN_PEERS)

SECRET = "correct horse battery staple"
OTHER = "incorrect horse battery staple"
NOTHING: Mapping[str, str] = {}
ZMTP = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


@pytest.fixture(autouse=True)
def _no_secret_of_all_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test here says who has which secret, and who has none."""
    monkeypatch.delenv("DISPY_SECRET", raising=False)


def examine(
    *words: str, secret: str = "", environment: Mapping[str, str] = NOTHING
) -> subprocess.CompletedProcess[str]:
    """Run the command; no traceback ever."""
    own = {"DISPY_HOST": "127.0.0.1", "DISPY_SECRET_FILE": "", "DISPY_SECRET": secret}
    done = subprocess.run(
        [sys.executable, "-m", "dispy.cli", "doctor", *words],
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2), done.stderr
    assert (SECRET in done.stdout + done.stderr) is False
    return done


def advice(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.partition("What to do\n")[2]


def protected(secret: str) -> dict[str, str]:
    return {"DISPY_SECRET": secret, "DISPY_HOST": "127.0.0.1"}


# -- who is there -------------------------------------------------------------------------------


def test_a_node_without_a_secret_on_this_machine(start_node: StartNode) -> None:
    node = start_node("--name", "alpha")
    done = examine(node.address)
    assert done.returncode == 0, done.stdout
    assert f"{node.address}: node 'alpha', dispy {dispy.__version__}, 2 CPUs" in done.stdout
    assert "round trip" in done.stdout and "All is well." in done.stdout


def test_a_node_with_our_secret(start_node: StartNode) -> None:
    node = start_node("--name", "alpha", environment=protected(SECRET))
    done = examine(node.address, "--json", secret=SECRET)
    assert done.returncode == 0, done.stdout
    told = json.loads(done.stdout)
    [contact] = told["contacts"]
    assert (contact["protection"], contact["answer"]["name"]) == ("CURVE", "alpha")
    assert abs(contact["answer"]["clock_s"]) < 5.0 and contact["answer"]["round_trip_s"] > 0
    assert told["well"] and told["advice"] == []


@pytest.mark.parametrize(
    ("theirs", "ours", "text", "todo"),
    [
        (SECRET, "", "it asks for a secret, and there is none here", "dispy secret check"),
        (SECRET, OTHER, "its secret differs from ours (DISPY_SECRET)", "dispy secret check"),
        ("", SECRET, "uses no secret, and this machine does (DISPY_SECRET)", "start"),
    ],
    ids=["none here", "different", "none there"],
)
def test_secrets_that_do_not_fit(
    start_node: StartNode, theirs: str, ours: str, text: str, todo: str
) -> None:
    node = start_node(environment=protected(theirs))
    done = examine(node.address, secret=ours)
    assert done.returncode == 1 and text in done.stdout
    assert todo in advice(done).lower()


def test_it_leaves_a_node_as_it_was(start_node: StartNode) -> None:
    """It isn't taken for a broker: the node works for whoever asks next."""
    node = start_node(environment=protected(""))
    for _ in range(3):
        assert examine(node.address).returncode == 0
    with dispy.JobCluster(abs, nodes=[node.address]) as cluster:
        assert cluster.submit(-1)() == 1
    assert "registered" not in node.log() and "doctor" not in node.log()


def wait_for(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.005)


def test_a_node_that_works_for_another(start_node: StartNode, gate: Path) -> None:
    node = start_node(environment=protected(""))
    with dispy.JobCluster(wait_for, nodes=[node.address]) as cluster:
        job = cluster.submit(str(gate))
        until(lambda: job.status == job.Running, "the job that runs")
        done = examine(node.address)
        assert done.returncode == 0 and "this node works for" in done.stdout
        assert "use the broker that it works for" in advice(done)
        gate.touch()
        cluster.wait()


def test_both_doors_of_a_broker(start_broker: StartBroker) -> None:
    broker = start_broker("--name", "head")
    for address in (broker.for_nodes, broker.address):
        done = examine(address)
        assert done.returncode == 0 and f"{address}: broker 'head'" in done.stdout, done.stdout


def test_a_broker_with_a_secret_for_each_door(start_broker: StartBroker, tmp_path: Path) -> None:
    paths = []
    for name, secret in (("users", SECRET), ("nodes", OTHER)):
        paths.append(tmp_path / name)
        paths[-1].write_text(secret)
        paths[-1].chmod(0o600)
    users, nodes = map(str, paths)
    broker = start_broker("--cluster-secret-file", users, "--node-secret-file", nodes)
    for address, ours in ((broker.address, SECRET), (broker.for_nodes, OTHER)):
        done = examine(address, secret=ours)
        assert done.returncode == 0 and ": broker " in done.stdout, done.stdout
    done = examine(broker.for_nodes, secret=SECRET)
    assert done.returncode == 1 and "its secret differs" in done.stdout


# -- who isn't ------------------------------------------------------------------------------------


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen at a port, and do something with each connection."""

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                serve(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def says(what: bytes) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.settimeout(5.0)
        try:
            connection.sendall(what)
            while connection.recv(1 << 16):
                pass
        except OSError:
            return

    return serve


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "it says 'SSH-2.0-OpenSSH_9.2"),
        (b"\x1b[2J\x07" * 10, "it says"),
        (ZMTP[:12] + b"GSSAPI".ljust(20, b"\0") + bytes(32), "ZeroMQ with 'GSSAPI'"),
        (b"", "it says nothing"),
        (ZMTP + b"\x04\x29garbage" * 9, "it was reached, but"),
    ],
)
def test_something_else_that_listens(what: bytes, text: str) -> None:
    with listening(says(what)) as port:
        done = examine(f"127.0.0.1:{port}", "--timeout", "1")
    assert done.returncode == 1 and text in done.stdout, done.stdout
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout


def test_something_that_hangs_up() -> None:
    with listening(lambda connection: None) as port:
        done = examine(f"127.0.0.1:{port}")
    assert done.returncode == 1 and "isn't dispy" in done.stdout
    assert "Find out what listens" in advice(done)


def test_nothing_listens() -> None:
    done = examine(f"127.0.0.1:{free_port()}")
    assert done.returncode == 1 and "refused: nothing listens there" in done.stdout
    assert "Start dispy-node" in advice(done)


def test_packets_that_are_dropped() -> None:
    """As behind a firewall: the queue of a listener is full, so nothing comes back."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        address = "{}:{}".format(*listener.getsockname())
        done = examine(address, "--timeout", "0.5")
    assert done.returncode == 1 and "no answer: nothing came back within 0.5 s" in done.stdout
    assert "Let TCP through" in advice(done)


def test_a_connection_over_which_nothing_comes(new_proxy: NewProxy, start_node: StartNode) -> None:
    node = start_node(environment=protected(""))
    proxy = new_proxy(node.address)
    assert examine(proxy.address).returncode == 0
    proxy.blackhole()
    done = examine(proxy.address, "--timeout", "0.5")
    assert done.returncode == 1 and "it says nothing" in done.stdout


def test_a_host_that_is_not_known() -> None:
    done = examine("no-such-host.invalid")
    assert done.returncode == 1 and "the name can't be found" in done.stdout
    assert "how 'no-such-host.invalid' is spelled" in advice(done)


@pytest.mark.parametrize("word", ["127.0.0.1:0", "host:port", ":9701", "--port=0", "--what"])
def test_wrong_words(word: str) -> None:
    assert examine(word).returncode == 2


# -- this machine ---------------------------------------------------------------------------------


def here(*words: str, **more: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the problems, and all that is told; others may use the usual ports just now."""
    done = examine("--json", *words, **more)
    told = json.loads(done.stdout)
    problems = [each for each in told["remarks"] if each["level"] == "problem"]
    assert done.returncode == (1 if problems else 0) and told["well"] is not bool(problems)
    return [each["text"] for each in problems if ":970" not in each["about"]], told


def test_this_machine_without_a_secret(start_node: StartNode) -> None:
    node = start_node("--name", "alpha", environment=protected(""))
    problems, told = here("--port", str(node.port))
    texts = [remark["text"] for remark in told["remarks"]]
    assert not problems and told["machine"]["listening"][str(node.port)] == ["127.0.0.1"]
    assert any("node 'alpha'" in text for text in texts)
    assert any(text.startswith("none is found") for text in texts)
    assert any("dispy secret new" in each for each in told["advice"]) and told["found"] == []
    assert set(told["machine"]["versions"]) == {"dispy", "Python", "pyzmq", "libzmq"}


def test_this_machine_with_a_secret(start_node: StartNode, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    environment = {"DISPY_SECRET_FILE": str(path)}
    node = start_node("--name", "alpha", environment=protected(SECRET))
    problems, told = here("--port", str(node.port), environment=environment)
    texts = [remark["text"] for remark in told["remarks"]]
    assert not problems and f"found: {path}" in texts
    assert any("node 'alpha'" in text for text in texts)
    assert any("other machines can't reach it" in text for text in texts)
    path.chmod(0o644)
    [problem], _ = here(environment=environment)
    assert "chmod 600" in problem
    [problem], _ = here(environment={"DISPY_SECRET_FILE": str(tmp_path / "none")})
    assert "DISPY_SECRET_FILE names" in problem


def test_a_secret_on_the_command_line_is_warned_of(start_node: StartNode) -> None:
    node = start_node(environment=protected(OTHER))
    done = examine("-s", OTHER, node.address)
    assert done.returncode == 0 and "list of processes" in done.stderr
