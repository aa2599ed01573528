"""What ``import dispy`` offers: names, signatures, and what wrong parameters say."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import dispy
from dispy import allocate, config, nodes, parameters, remote, shared
from dispy.aliases import PARAMETERS, new_names
from dispy.callbacks import check_callback
from dispy.job import STATUS_NAMES
from dispy.protocol.messages import JobOptions, JobSpec, NodeSpec
from dispy.protocol.protection import NOTHING
from dispy.protocol.secret import SecretError
from dispy.status import table

HEAVY = ("asyncio", "cloudpickle", "logging", "msgspec", "threading", "zmq")

# The documented order of the parameters, and their defaults.
JOB_CLUSTER = {
    "computation": inspect.Parameter.empty,
    "nodes": None,
    "depends": (),
    "job_status": None,
    "cluster_status": None,
    "host": None,
    "ext_host": None,
    "dispy_port": None,
    "ipv4_udp_multicast": False,
    "dest_path": None,
    "loglevel": None,
    "setup": None,
    "cleanup": True,
    "ping_interval": None,
    "pulse_interval": None,
    "reentrant": False,
    "secret": "",
    "keyfile": None,
    "certfile": None,
    "recover_file": None,
}


SHARED_JOB_CLUSTER = {
    "computation": inspect.Parameter.empty,
    "nodes": None,
    "depends": (),
    "job_status": None,
    "cluster_status": None,
    "host": None,
    "client_port": 0,
    "dispy_port": None,
    "scheduler_node": None,
    "ext_host": None,
    "loglevel": None,
    "setup": None,
    "cleanup": True,
    "dest_path": None,
    "reentrant": False,
    "poll_interval": None,
    "exclusive": False,
    "secret": "",
    "keyfile": None,
    "certfile": None,
    "recover_file": None,
}


def nothing() -> None:
    """Do nothing."""


def new_cluster(**parameters: Any) -> dispy.JobCluster:
    return dispy.JobCluster(nothing, **parameters)


class Choosy(dispy.NodeAllocate):
    """Decides for itself."""

    def allocate(self, *args: Any, **kwargs: Any) -> int:
        return 1


# -- names ---------------------------------------------------------------------------------------


def test_all_is_sorted_and_complete() -> None:
    assert list(dispy.__all__) == sorted(dispy.__all__)
    for name in dispy.__all__:
        assert getattr(dispy, name) is not None
        assert name in dir(dispy)
    with pytest.raises(AttributeError, match="no_such_name"):
        dispy.no_such_name  # noqa: B018


def test_every_public_thing_is_documented() -> None:
    for name in dispy.__all__:
        thing = getattr(dispy, name)
        if not isinstance(thing, type):
            continue
        assert thing.__doc__, name
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("dispy"):
                assert function.__doc__, f"{name}.{method}"


def test_importing_dispy_loads_nothing_heavy() -> None:
    code = "import dispy, sys; print([name for name in sys.argv[1:] if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, check=True
    )
    bare = subprocess.run(
        [sys.executable, "-c", code.replace("dispy, ", ""), *HEAVY],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == bare.stdout  # what the interpreter's own start-up loads doesn't count


@pytest.mark.parametrize(
    ("kind", "documented"),
    [(dispy.JobCluster, JOB_CLUSTER), (dispy.SharedJobCluster, SHARED_JOB_CLUSTER)],
)
def test_the_parameters_are_those_of_the_documentation_in_its_order(
    kind: type, documented: dict[str, object]
) -> None:
    signature = inspect.signature(kind).parameters
    positional = [p for p in signature.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in positional} == documented
    assert [p.name for p in positional] == list(documented)


def test_a_shared_cluster_takes_all_that_is_ours_as_well() -> None:
    both = [
        {p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}
        for kind in (dispy.JobCluster, dispy.SharedJobCluster)
    ]
    assert both[0] - {"poll_interval"} == both[1] - {"name", "scheduler_host", "weight"}


def test_status_numbers() -> None:
    assert STATUS_NAMES == {
        5: "Created",
        6: "Running",
        7: "ProvisionalResult",
        8: "Cancelled",
        9: "Terminated",
        10: "Abandoned",
        11: "Finished",
    }
    assert dispy.DispyNode.Initialized == 4
    assert dispy.DispyNode.Closed == 16
    assert dispy.DispyNode.AvailInfo == 17


def test_the_ports_follow_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (config.DispyPort, config.NodePort, config.SharedSchedulerPort) == (9700, 9701, 9702)
    monkeypatch.setattr(config, "DispyPort", 5000)
    assert (config.ClientPort, config.NodePort, config.SharedSchedulerPort) == (5000, 5001, 5002)
    monkeypatch.setattr(config, "NodePort", 6000, raising=False)
    assert config.NodePort == 6000
    with pytest.raises(AttributeError):
        config.NoSuchPort  # noqa: B018


def test_the_logger_is_a_standard_one_with_levels() -> None:
    assert dispy.logger is logging.getLogger("dispy")
    assert (dispy.logger.DEBUG, dispy.logger.INFO, dispy.logger.WARN) == (10, 20, 30)
    assert (dispy.logger.WARNING, dispy.logger.ERROR) == (30, 40)
    assert (dispy.logger.CRITICAL, dispy.logger.FATAL) == (50, 50)


@pytest.mark.parametrize("configured", [False, True])
def test_the_log_speaks_unless_the_program_has_set_up_logging(configured: bool) -> None:
    setup = "import logging; logging.basicConfig(format='mine %(message)s');" * configured
    code = setup + "import dispy; dispy.logger.info('hello'); dispy.logger.debug('quiet')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("mine hello") == configured
    assert "hello" in done.stderr and done.stdout == ""


# -- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("nodes", 3, TypeError),
        ("nodes", [], ValueError),
        ("nodes", [3], TypeError),
        ("nodes", [("127.0.0.1", "9701")], TypeError),
        ("nodes", ["127.0.0.1:port"], ValueError),
        ("nodes", [{"port": 3}], ValueError),
        ("nodes", ["no-such-host.invalid"], OSError),
        ("nodes", ["10.1.2.3"], dispy.SecretNeededError),
        ("nodes", ["10.*"], dispy.SecretNeededError),
        ("depends", [3j], TypeError),
        ("depends", ["no/such/file"], FileNotFoundError),
        ("depends", "a string", TypeError),
        ("job_status", 3, TypeError),
        ("job_status", nothing, TypeError),
        ("cluster_status", lambda job: None, TypeError),
        ("host", 3, TypeError),
        ("host", "10.1.2.3", dispy.SecretNeededError),
        ("ext_host", 3, TypeError),
        ("dispy_port", "9700", TypeError),
        ("dispy_port", 65535, ValueError),
        ("ipv4_udp_multicast", "yes", TypeError),
        ("dest_path", 3, TypeError),
        ("dest_path", "../x", ValueError),
        ("setup", 3, TypeError),
        ("cleanup", 3, TypeError),
        ("ping_interval", "often", TypeError),
        ("poll_interval", -1, ValueError),
        ("pulse_interval", "5", TypeError),
        ("pulse_interval", 0.05, ValueError),
        ("pulse_interval", 1001, ValueError),
        ("reentrant", 1, TypeError),
        ("secret", 3, TypeError),
        ("secret", "dispy1_short", SecretError),
        ("keyfile", "no/such/file", SecretError),
        ("certfile", "no/such/file", SecretError),
        ("keyfile", 3, TypeError),
        ("insecure", "yes", TypeError),
        ("ext_host", "host:port", ValueError),
        ("recover_file", 3, TypeError),
        ("recover_file", "/", OSError),
        ("recover_file", "no/such/folder/file", OSError),
        ("setup_timeout", -1, ValueError),
        ("timeout", "long", TypeError),
        ("retries", -1, ValueError),
        ("retries", 0.5, TypeError),
        ("priority", "high", TypeError),
        ("priority", 1 << 40, ValueError),
        ("job_output", nothing, TypeError),
        ("max_tasks_per_child", 0, ValueError),
        ("max_tasks_per_child", "all", TypeError),
        ("cancel_grace", -1, ValueError),
        ("no_such_parameter", 1, TypeError),
    ],
)
def test_a_wrong_parameter_raises_and_is_named(
    parameter: str, value: object, error: type[Exception]
) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=parameter):
        new_cluster(**{parameter: value})
    assert threading.active_count() == before  # nothing was started


@pytest.mark.parametrize(
    ("parameter", "value", "error"),
    [
        ("scheduler_node", 3, TypeError),
        ("scheduler_node", "127.0.0.1:port", ValueError),
        ("scheduler_node", ":9702", ValueError),
        ("scheduler_node", "no-such-host.invalid", OSError),
        ("scheduler_node", "10.1.2.3:9702", dispy.SecretNeededError),
        ("client_port", -1, ValueError),
        ("client_port", "0", TypeError),
        ("dispy_port", 65535, ValueError),
        ("exclusive", 1, TypeError),
        ("name", 3, TypeError),
        ("name", "", ValueError),
        ("name", "a\nb", ValueError),
        ("weight", 0, ValueError),
        ("weight", "1", TypeError),
        ("weight", float("nan"), ValueError),
        ("nodes", dispy.LocalNode(1), TypeError),
        ("nodes", [Choosy("*")], TypeError),
        ("nodes", ["10.1.2.3:9701"], dispy.SecretNeededError),
        ("pulse_interval", 1, TypeError),
        ("ping_interval", 1, TypeError),
        ("ipv4_udp_multicast", True, TypeError),
        ("no_such_parameter", 1, TypeError),
        ("secret", " ", SecretError),
        ("insecure", 1, TypeError),
        ("recover_file", "/", OSError),
    ],
)
def test_a_wrong_parameter_of_a_shared_cluster_raises_and_is_named(
    parameter: str, value: object, error: type[Exception]
) -> None:
    before = threading.active_count()
    with pytest.raises(error, match=parameter):
        dispy.SharedJobCluster(nothing, **{parameter: value})  # type: ignore[arg-type]
    assert threading.active_count() == before  # nothing was started


def test_the_two_names_of_the_broker_do_not_differ() -> None:
    with pytest.raises(TypeError, match="scheduler_host"):
        dispy.SharedJobCluster(nothing, scheduler_node="localhost", scheduler_host="127.0.0.1")


@pytest.mark.parametrize(
    ("written", "address"),
    [
        (None, "127.0.0.1:9702"),
        ("localhost", "127.0.0.1:9702"),
        ("127.0.0.1:5", "127.0.0.1:5"),
        ("[::1]:5", "[::1]:5"),
        ("::1", "[::1]:9702"),
        ("[::1]", "[::1]:9702"),
    ],
)
def test_the_address_of_a_broker(written: str | None, address: str) -> None:
    assert remote.read_address("scheduler_node", written, 9702) == address


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("127.0.0.1", [NodeSpec("127.0.0.1")]),
        ("localhost", [NodeSpec("127.0.0.1"), NodeSpec("localhost")]),
        ("alpha.invalid", [NodeSpec("alpha.invalid")]),
        ("10.0.*", [NodeSpec("10.0.*")]),
        (("127.0.0.1", 9800, -1), [NodeSpec("127.0.0.1", 9800, -1)]),
    ],
)
def test_nodes_of_a_shared_cluster_are_dialled_only_with_a_port(
    entry: Any, expected: list[NodeSpec]
) -> None:
    (read,) = allocate.read_nodes([entry])
    assert isinstance(read, dispy.NodeAllocate)
    assert shared.places(read) == expected


@pytest.mark.parametrize("computation", [3, "no-such-program-anywhere", "/no/such/file"])
def test_a_wrong_computation_raises(computation: Any) -> None:
    with pytest.raises((TypeError, OSError), match="computation"):
        dispy.JobCluster(computation)


def test_errors_are_also_of_builtin_types() -> None:
    assert issubclass(dispy.NotSupportedError, ValueError)
    assert issubclass(dispy.SecretNeededError, ConnectionError)
    assert issubclass(dispy.ClusterClosedError, RuntimeError)


def test_harmless_parameters_are_accepted() -> None:
    assert parameters.read_protection("", None, None, False) == NOTHING
    parameters.check_needless("ping_interval", 5)
    assert parameters.read_options(False, None, None, 0) == (False, 0, 5.0, 0.0, 0.0)
    assert parameters.read_options(True, 3, 1, 2.5, 9) == (True, 3, 1.0, 2.5, 9.0)
    paths = [None, "", "a/b", "/a/b/"]
    assert [parameters.read_dest_path(path) for path in paths] == ["", "", "a/b", "a/b"]


def test_jobs_have_options_only_when_asked_for() -> None:
    none = parameters.read_job_defaults(None, 0, 0, False)
    assert none.options() is None
    assert none.options(0, 0, 0) is None
    assert none.options(2.5, 3, -1) == JobOptions(-1, 2.5, 3)
    some = parameters.read_job_defaults(9, 2, 1, True)
    assert some.options() == JobOptions(1, 9.0, 2, 0, True)
    assert some.options(0, 0, 0, 7) == JobOptions(0, 0.0, 0, 7, True)
    with pytest.raises(ValueError, match="dispy_job_timeout"):
        none.options(timeout=-1)
    with pytest.raises(TypeError, match="dispy_job_priority"):
        none.options(priority="high")


def test_old_names() -> None:
    for old, new in PARAMETERS.items():
        with pytest.deprecated_call():
            assert new_names({old: "x"}) == {new: "x"}
    with pytest.deprecated_call():
        assert new_names({"node_port": 9701}) == {"dispy_port": 9700}
        assert new_names({"port": 5}, shared=True) == {"client_port": 5}
        assert new_names({"scheduler_port": 9702}, shared=True) == {"dispy_port": 9700}
    assert new_names({"fault_recover": True}) == {}
    job = dispy.DispyJob(1, JobSpec(1, 0, b""), None, (), {})
    job.host = "127.0.0.1"
    assert job.ip_addr == "127.0.0.1"


def test_callbacks_may_be_anything_that_takes_the_arguments() -> None:
    class Receiver:
        def status(self, job: dispy.DispyJob) -> None: ...

    for function in (Receiver().status, lambda job: None, lambda job, other=1: None, print, None):
        check_callback("job_status", function, 1)
    with pytest.raises(TypeError, match="job_status must be a function of 1 argument"):
        check_callback("job_status", Receiver.status, 1)


# -- nodes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("127.0.0.1", NodeSpec("127.0.0.1", 9701)),
        ("127.0.0.1:9800", NodeSpec("127.0.0.1", 9800)),
        ("localhost", NodeSpec("127.0.0.1", 9701)),
        ("[::1]:9800", NodeSpec("::1", 9800)),
        ("::1", NodeSpec("::1", 9701)),
        ("[::1]", NodeSpec("::1", 9701)),
        (("127.0.0.1", 9800), NodeSpec("127.0.0.1", 9800)),
        (("127.0.0.1", None, -1), NodeSpec("127.0.0.1", 9701, -1)),
        (("127.0.0.1:9800", None, 2, [], ()), NodeSpec("127.0.0.1", 9800, 2)),
        ({"host": "127.0.0.1", "cpus": 2}, NodeSpec("127.0.0.1", 9701, 2)),
        (dispy.NodeAllocate("127.0.0.1", 9800, 1), NodeSpec("127.0.0.1", 9800, 1)),
        (dispy.DispyNode("127.0.0.1", "here", 2), NodeSpec("127.0.0.1", 9701)),
        (dispy.DispyNode("127.0.0.1", "a", 2, "127.0.0.1:9800"), NodeSpec("127.0.0.1", 9800)),
    ],
)
def test_a_node_may_be_written_in_many_ways(entry: Any, expected: NodeSpec) -> None:
    (read,) = allocate.read_nodes([entry])
    assert isinstance(read, dispy.NodeAllocate)
    assert allocate.resolve(read, 9701) == expected


def test_named_nodes_come_before_patterns() -> None:
    entries = allocate.read_nodes(["*", "127.0.0.1", dispy.LocalNode(1), "127.*"])
    assert [allocate.is_pattern(entry) for entry in entries] == [False, False, True, True]


def test_allocate_does_what_the_documentation_says() -> None:
    def cpus(host: str, wanted: int) -> int:
        node = dispy.NodeAllocate(host, cpus=wanted)
        return node.allocate(None, "10.0.0.7", "seven", 8)  # type: ignore[arg-type]

    assert [cpus("*", n) for n in (0, 2, 20, -3, -20)] == [8, 2, 8, 5, 0]
    assert [cpus(host, 0) for host in ("10.0.0.*", "10.0.0.7", "seven", "10.0.1.*")] == [8, 8, 8, 0]


def test_a_host_name_stands_for_its_address() -> None:
    node = dispy.NodeAllocate("localhost")
    assert node.ip_addr == "127.0.0.1"
    assert node.allocate(None, "127.0.0.1", "a-name", 4) == 4  # type: ignore[arg-type]
    assert dispy.NodeAllocate("10.0.*").ip_addr == "10.0.*"


def test_whoever_has_an_allocate_of_its_own_is_asked() -> None:
    class Mine(dispy.NodeAllocate):
        def allocate(self, *args: Any, **kwargs: Any) -> int:
            return 1

    assert allocate.asks(allocate.read_nodes([Mine("*"), "127.0.0.1"]))
    assert not allocate.asks(allocate.read_nodes([dispy.NodeAllocate("*"), dispy.LocalNode(1)]))


def test_an_entry_of_nodes_is_checked_where_it_is_made(tmp_path: Path) -> None:
    there = tmp_path / "data"
    there.write_bytes(b"x")
    node = dispy.NodeAllocate("*", depends=[there], setup_args=(1, 2))
    assert (node.depends, node.setup_args) == ([there], (1, 2))
    with pytest.raises(FileNotFoundError, match="missing"):
        dispy.NodeAllocate("*", depends=[str(tmp_path / "missing")])
    with pytest.raises(TypeError, match="depends"):
        dispy.NodeAllocate("*", depends=str(there))
    with pytest.raises(TypeError, match="setup_args"):
        dispy.NodeAllocate("*", setup_args="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of them"):
        dispy.LocalNode(cpus=100_000)


def test_a_node_may_be_named_in_many_ways() -> None:
    first = dispy.DispyNode("127.0.0.1", "one", 2, "127.0.0.1:9701")
    second = dispy.DispyNode("127.0.0.1", "two", 2, "127.0.0.1:9702")
    known = [first, second]
    for name in ("two", "127.0.0.1:9702", "localhost:9702", second):
        assert nodes.find(known, name) is second
    assert nodes.find(known, dispy.DispyNode("127.0.0.1", "two", 2, "127.0.0.1:9702")) is second
    assert nodes.find(known, "localhost") is first
    first.status = dispy.DispyNode.Closed
    assert nodes.find(known, "127.0.0.1") is second
    assert nodes.find(known, "no-such-host.invalid") is None
    with pytest.raises(TypeError, match="node"):
        nodes.find(known, 3)


def test_a_node_of_several_addresses_may_be_named_by_each() -> None:
    first = dispy.DispyNode("192.0.2.7", "one", 2, "192.0.2.7:9701")
    first._addresses = frozenset(["192.0.2.7:9701", "10.0.0.7:9801", "[2001:db8::7]:9701"])
    second = dispy.DispyNode("192.0.2.8", "two", 2, "192.0.2.8:9701")
    known = [second, first]
    for name in ("10.0.0.7:9801", "10.0.0.7", "192.0.2.7", "2001:db8::7", "[2001:db8::7]:9701"):
        assert nodes.find(known, name) is first
    assert nodes.find(known, "10.0.0.7:9701") is None
    elsewhere = dispy.DispyNode("10.0.0.7", "one", 2, "10.0.0.7:9801")  # as another cluster has it
    assert nodes.find(known, elsewhere) is first


# -- the table -----------------------------------------------------------------------------------


def test_print_status() -> None:
    node = dispy.DispyNode("127.0.0.1", "here", 2)
    node.jobs_done, node.cpu_time, node.tx, node.rx = 4, 10.0, 999, 5 * 1024 * 1024
    text = table(dispy.ClusterStatus([node], 3), wall_time=5.0)
    row = next(line for line in text.splitlines() if "here" in line)
    assert [cell.strip() for cell in row.split("|")] == [
        "127.0.0.1 (here)",
        "2",
        "4",
        "2.500",
        "10.000",
        "999 B",
        "5.0 M",
    ]
    assert "Jobs pending: 3" in text
    assert "Total job time: 10.000 sec, wall time: 5.000 sec, speedup: 2.000" in text
    assert len({len(line) for line in text.splitlines() if "|" in line}) == 1
