"""What all tests from the outside start with: nodes and clusters, ended and looked after."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

import dispy

from . import apart, at_broker, behind_relays
from .behind_relays import NewNode
from .fault_proxy import FaultProxy
from .processes import NOTHING_MORE, BrokerProcess, NodeProcess, Program

# Whoever runs the tests in the background has them ignore Ctrl-C, and so all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class StartNode(Protocol):
    """Start a node that ends with the test and has to leave nothing."""

    def __call__(
        self,
        *options: str,
        cpus: int = 2,
        port: int = 0,
        through: Sequence[str] = (),
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> NodeProcess:
        """Return it when it's ready."""


class StartBroker(Protocol):
    """Start a broker that several programs may use, and that ends with the test."""

    def __call__(
        self,
        *options: str,
        instead_of: BrokerProcess | None = None,
        crash_at: str = "",
        through: Sequence[str] = (),
        state: Path | None = None,
    ) -> BrokerProcess:
        """Return it when it's ready; ``instead_of``: at the place of that one, with its state."""


NewCluster = Callable[..., dispy.JobCluster]
NewSharedCluster = Callable[..., dispy.SharedJobCluster]
NewProxy = Callable[..., FaultProxy]
RunProgram = Callable[..., Program]


def pytest_configure(config: pytest.Config) -> None:
    """Say which marks there are."""
    marks = (
        "embedded_only(reason): can't be played with a SharedJobCluster",
        "direct_only(reason): doesn't hold for nodes behind relays",
    )
    for mark in marks:
        config.addinivalue_line("markers", mark)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, its own: clusters write into it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """The broker of the tests that are played with shared clusters."""
    broker = BrokerProcess(tmp_path_factory.mktemp("broker"), *at_broker.OPTIONS)
    yield broker
    try:
        broker.stop()
    finally:
        broker.clear_away()


@pytest.fixture(autouse=True, scope="module")
def _at_a_broker(request: pytest.FixtureRequest) -> Iterator[None]:
    """Play the tests of a module with shared clusters, if that's wanted; see `at_broker`."""
    if not at_broker.is_wanted(request.module):
        yield
        return
    broker: BrokerProcess = request.getfixturevalue("session_broker")
    with at_broker.used(broker.address):
        yield


@pytest.fixture(autouse=True)
def _if_possible(request: pytest.FixtureRequest) -> None:
    """Leave out what can't be played at a broker, or behind relays."""
    mark = request.node.get_closest_marker("embedded_only")
    if mark is not None and at_broker.is_wanted(request.module):
        pytest.skip(mark.args[0])
    mark = request.node.get_closest_marker("direct_only")
    if mark is not None and behind_relays.COUNT:
        pytest.skip(mark.args[0])


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where jobs note that they run."""
    return tmp_path / "record"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file that jobs wait for."""
    return tmp_path / "gate"


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Start nodes."""
    nodes: list[NodeProcess] = []

    def start(
        *options: str,
        cpus: int = 2,
        port: int = 0,
        through: Sequence[str] = (),
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> NodeProcess:
        nodes.append(
            NewNode(
                tmp_path, *options, cpus=cpus, port=port, through=through, environment=environment
            )
        )
        return nodes[-1]

    yield start
    try:
        for node in nodes:
            if node.process.poll() is None:
                node.stop()
            node.assert_nothing_left()
    finally:
        for node in nodes:
            node.clear_away()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node of two CPUs that the tests of a module share."""
    shared = NewNode(tmp_path_factory.mktemp("node"))
    yield shared
    try:
        shared.stop()
    finally:
        shared.clear_away()


@pytest.fixture
def new_cluster() -> Iterator[NewCluster]:
    """Make clusters of nodes, or of entries of ``nodes=``, closed at the end of the test."""
    clusters: list[dispy.JobCluster] = []

    def new(computation: Callable[..., Any] | str, *nodes: Any, **more: Any) -> dispy.JobCluster:
        entries = [node.address if isinstance(node, NodeProcess) else node for node in nodes]
        clusters.append(dispy.JobCluster(computation, nodes=entries, **more))
        return clusters[-1]

    yield new
    for cluster in clusters:
        assert cluster.close(timeout=0, terminate=True)


@pytest.fixture
def start_broker(tmp_path: Path) -> Iterator[StartBroker]:
    """Start brokers; also those that take their places end with the test."""
    brokers: list[BrokerProcess] = []

    def start(
        *options: str,
        instead_of: BrokerProcess | None = None,
        crash_at: str = "",
        through: Sequence[str] = (),
        state: Path | None = None,
    ) -> BrokerProcess:
        if instead_of is None:
            new = BrokerProcess(tmp_path, *options, crash_at=crash_at, through=through, state=state)
        else:
            new = instead_of.again(*options, crash_at=crash_at)
        brokers.append(new)
        return new

    yield start
    try:
        for broker in brokers:
            if broker.process.poll() is None:
                broker.stop()
    finally:
        for broker in brokers:
            broker.clear_away()


@pytest.fixture
def new_proxy() -> Iterator[NewProxy]:
    """Make connections that misbehave on demand; to be asked for before what uses them."""
    proxies: list[FaultProxy] = []

    def new(target: str, listen: str = f"{apart.HERE}:0") -> FaultProxy:
        proxies.append(FaultProxy(target, listen))
        return proxies[-1]

    yield new
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def new_shared_cluster() -> Iterator[NewSharedCluster]:
    """Make clusters at a broker, closed at the end of the test."""
    clusters: list[dispy.SharedJobCluster] = []

    def new(
        computation: Callable[..., Any] | str, broker: BrokerProcess | FaultProxy, **more: Any
    ) -> dispy.SharedJobCluster:
        clusters.append(dispy.SharedJobCluster(computation, scheduler_node=broker.address, **more))
        return clusters[-1]

    yield new
    for cluster in clusters:
        assert cluster.close(timeout=0, terminate=True)
    dispy.process.end()  # the broker may be gone: don't look for it for ever


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[RunProgram]:
    """Start users' programs, which have to leave nothing."""
    programs: list[Program] = []

    def start(source: str, *arguments: str) -> Program:
        programs.append(Program(tmp_path, source, *arguments))
        return programs[-1]

    yield start
    try:
        for program in programs:
            program.assert_nothing_left()
    finally:
        for program in programs:
            program.clear_away()
