"""Encrypted connections over real sockets: who gets in, and what the others are told."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from dispy.protocol import curve
from dispy.protocol.arrivals import Arrived, Down, HungUp, Up
from dispy.protocol.events import Away, DialFailed, Joined, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import CLIENTS, NODES, Guard, doors
from dispy.protocol.identity import describe, new_token, random_name
from dispy.protocol.keys import Keys
from dispy.protocol.messages import Done, JobResult, JobSpec, Refused, Released, Run
from dispy.protocol.selftest import OpenDoor, self_test
from dispy.protocol.transport import Bus
from dispy.protocol.wire import Codec, chunked

from .buspeers import DEADLINE_S, BusPeer, until

KEYS, OTHER, NONE = Keys(b"the secret"), Keys(b"another"), None


class Peer(BusPeer):
    """One end, with a secret or without."""

    def __init__(self, role: str, keys: Keys | None, guard: Guard | None = None) -> None:
        token = new_token()
        self.guard = guard or Guard(token, keys)
        me = describe(role, "1", name=role, token=self.guard.token)
        bus = Bus(keys)
        super().__init__(bus, Exchange(me, bus, random_name, guard=self.guard))

    def failures(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, DialFailed)]


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.bus.close()


def pair(peers: list[Peer], listening: Keys | None, dialling: Keys | None) -> tuple[Peer, Peer]:
    node, broker = Peer("node", listening), Peer("broker", dialling)
    peers += [node, broker]
    broker.exchange.dial(node.bus.listen("127.0.0.1:0"))
    return node, broker


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- who gets in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_with_the_same_secret_messages_and_payloads_go_both_ways(
    peers: list[Peer], address: str
) -> None:
    node, broker = Peer("node", KEYS), Peer("broker", Keys(b"the secret"))
    peers += [node, broker]
    broker.exchange.dial(node.bus.listen(address))
    until(lambda: node.of(Joined) and broker.of(Joined), node, broker)
    content = bytes(range(256)) * 40_000  # ten chunks
    broker.exchange.send(node.guard.instance, Run(7, [JobSpec(1, 1, b"", [chunked(content)])]))
    until(lambda: node.of(Received), node, broker)
    [event] = node.of(Received)
    assert isinstance(event, Received) and isinstance(event.message, Run)
    part = event.message.jobs[0].parts[0]
    assert part.tobytes() == content
    back = Done(7, [JobResult(1, 1, 11, 0.0, 1.0, b"", [part])])
    node.exchange.send(event.peer, back)
    until(lambda: broker.of(Received), node, broker)


@pytest.mark.parametrize(
    "listening, dialling, told, logged",
    [
        (KEYS, OTHER, "the secrets differ", "it has another secret"),
        (KEYS, NONE, "it asks for a secret, and this side has none", "it has no secret"),
        (NONE, KEYS, "this side has a secret, and that one has none", "it has a secret"),
    ],
)
def test_who_has_another_secret_is_refused_within_a_second_and_both_sides_say_why(
    peers: list[Peer],
    caplog: pytest.LogCaptureFixture,
    listening: Keys | None,
    dialling: Keys | None,
    told: str,
    logged: str,
) -> None:
    node, broker = pair(peers, listening, dialling)
    began = time.monotonic()
    until(broker.failures, node, broker)
    took_s = time.monotonic() - began
    until(lambda: warnings(caplog), node, broker)
    assert told in broker.failures()[0] and took_s < 1.0
    assert all("connection from" in said and logged in said for said in warnings(caplog))
    assert not node.events


def test_it_doesn_t_try_again_at_once_and_the_log_isn_t_filled(
    peers: list[Peer], caplog: pytest.LogCaptureFixture
) -> None:
    node, broker = pair(peers, KEYS, OTHER)
    until(broker.failures, node, broker)
    began = time.monotonic()
    until(lambda: time.monotonic() > began + 1.5, node, broker)
    assert len(broker.failures()) == 1
    until(lambda: len(broker.failures()) == 2, node, broker)
    assert time.monotonic() > began + 4.0
    assert len(warnings(caplog)) <= 2, "once for each address, which may not be known"


def test_the_log_names_the_address(peers: list[Peer], caplog: pytest.LogCaptureFixture) -> None:
    """Who is told at once of the connection still can look where it comes from."""
    node = Peer("node", KEYS)
    peers.append(node)
    host, _, port = node.bus.listen("127.0.0.1:0").rpartition(":")
    with socket.create_connection((host, int(port)), source_address=("127.0.0.5", 0)) as stranger:
        stranger.sendall(curve.greeting(False)[: curve.VERSION_END])
        until(lambda: node.bus._listeners.all[0].peers, node)
        stranger.sendall(curve.greeting(False)[curve.VERSION_END :])
        until(lambda: warnings(caplog), node)
    assert "from 127.0.0.5 was refused: it has no secret" in warnings(caplog)[0]


def test_who_only_looks_is_not_logged(peers: list[Peer], caplog: pytest.LogCaptureFixture) -> None:
    node = Peer("node", KEYS)
    peers.append(node)
    host, _, port = node.bus.listen("127.0.0.1:0").rpartition(":")
    for words in (b"", b"GET / HTTP/1.1\r\nHost: me\r\n\r\n" * 5, bytes(100)):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(words)
            node.turn()
    broker = Peer("broker", KEYS)
    peers.append(broker)
    broker.exchange.dial(f"{host}:{port}")
    until(lambda: broker.of(Joined), node, broker)  # those before it have been told of by now
    assert not warnings(caplog)


def test_a_mishap_isn_t_taken_for_another_secret(peers: list[Peer]) -> None:
    """The first connections are cut off: that says nothing about secrets."""
    node, broker = Peer("node", KEYS), Peer("broker", KEYS)
    peers += [node, broker]
    behind = node.bus.listen("127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as middle:
        middle.settimeout(0.0)
        broker.exchange.dial("{}:{}".format(*middle.getsockname()))
        cut_off(middle, broker, 2)  # the probe, and the first try
        # The question how it wants to be spoken to, and the second try, go on to the node.
        pipes = Pipes(middle, behind)
        until(lambda: broker.of(Joined) or not pipes.pass_on(), node, broker)
    pipes.close()
    assert not broker.failures()


def cut_off(server: socket.socket, dialler: Peer, count: int) -> None:
    """Accept so many connections and close them, each after it has said something."""
    for number in range(count):
        accepted: list[socket.socket] = []
        until(partial(accept, server, accepted), dialler)
        if number:
            accepted[0].sendall(curve.greeting(True)[: curve.VERSION_END])
            accepted[0].setblocking(False)
            until(partial(has_news, accepted[0]), dialler)
        accepted[0].close()


def accept(server: socket.socket, taken: list[socket.socket]) -> bool:
    """Accept a connection, if there is one."""
    with suppress(BlockingIOError):
        taken.append(server.accept()[0])
        return True
    return False


def has_news(source: socket.socket) -> bytes:
    try:
        return source.recv(4096)
    except BlockingIOError:
        return b""


class Pipes:
    """Passes connections on, without threads."""

    def __init__(self, server: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._server, self._target = server, (host, int(port))
        self._ends: list[tuple[socket.socket, socket.socket]] = []

    def pass_on(self) -> bool:
        """Pass on what has come; always true."""
        taken: list[socket.socket] = []
        accept(self._server, taken)
        for one in taken:
            two = socket.create_connection(self._target)
            one.setblocking(False)
            two.setblocking(False)
            self._ends += [(one, two), (two, one)]
        for source, sink in self._ends:
            said = has_news(source)
            if said:
                sink.sendall(said)
        return True

    def close(self) -> None:
        for source, _ in self._ends:
            source.close()


def test_a_peer_that_just_goes_is_not_told_to_have_another_secret(peers: list[Peer]) -> None:
    broker = Peer("broker", KEYS)
    peers.append(broker)
    with socket.create_server(("127.0.0.1", 0)) as middle:
        middle.settimeout(0.0)
        broker.exchange.dial("{}:{}".format(*middle.getsockname()))
        cut_off(middle, broker, 2)
    until(broker.failures, broker)
    assert "secret" not in broker.failures()[0]


# -- more than the key of the server --------------------------------------------------------------


class Stranger:
    """A bare socket that knows a server's key, as who has seen it in a file might."""

    def __init__(self, address: str, keys: Keys, routing_id: bytes = b"") -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.pair = curve.random_pair()
        self.dealer = self.context.socket(zmq.DEALER)
        self.dealer.setsockopt(zmq.LINGER, 0)
        curve.secure_dialler(self.dealer, curve.server_pair(keys).public, self.pair)
        if routing_id:
            self.dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        self.dealer.connect(f"tcp://{address}")

    def close(self) -> None:
        self.dealer.close()
        self.context.term()


def test_the_server_s_key_alone_is_not_enough(
    peers: list[Peer], caplog: pytest.LogCaptureFixture
) -> None:
    node = Peer("node", KEYS)
    peers.append(node)
    with closing(Stranger(node.bus.listen("127.0.0.1:0"), KEYS)) as stranger:
        broker = Peer("broker", KEYS)  # only says what is to be said
        peers.append(broker)
        broker.exchange.dial("nowhere")
        broker.exchange.receive(Up(1, OTHER_KEY), 0.0)
        said = recorded_hello(broker)
        stranger.dealer.send(said)
        until(lambda: stranger.dealer.poll(0), node)
        refused = Codec().decode(stranger.dealer.recv())[0]
    assert isinstance(refused, Refused) and "doesn't prove" in refused.reason
    assert not node.events and "'broker' 'broker' at door 0 was refused" in warnings(caplog)[0]


OTHER_KEY = b"a key of another connection, recorded..."


def recorded_hello(peer: Peer) -> bytes:
    """Return a Hello as it would be said on a connection with `OTHER_KEY`."""
    from dispy.protocol.messages import VERSION_MAJOR, VERSION_MINOR, Hello

    me = peer.exchange.identity
    proofs = peer.guard.present(me.role, me.instance, OTHER_KEY)
    return Codec().encode(Hello(VERSION_MAJOR, VERSION_MINOR, me, "", 0, *proofs))[0]


def test_each_message_comes_with_the_key_of_its_connection() -> None:
    with closing(Bus(KEYS)) as bus:
        address = bus.listen("127.0.0.1:0")
        with closing(Stranger(address, KEYS)) as one, closing(Stranger(address, KEYS)) as two:
            for stranger in (one, two, one):
                stranger.dealer.send_multipart([stranger.pair.public, b"more"])
            arrived = arrivals(bus, 3)
    assert all(bytes(each.frames[0]) == each.key for each in arrived)
    assert {each.key for each in arrived} == {one.pair.public, two.pair.public}
    assert all(bytes(each.frames[1]) == b"more" for each in arrived)


def arrivals(bus: Bus, count: int) -> list[Arrived]:
    found: list[Arrived] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline
        found += [each for each in bus.poll(0.01) if isinstance(each, Arrived)]
    return found


@pytest.mark.parametrize("route", [b"\x01abcd\x01", b"abcde"])
def test_who_chooses_its_own_routing_id_isn_t_heard(route: bytes) -> None:
    """It might choose one that stands for a peer at another door, or was another's before."""
    with closing(Bus(KEYS)) as bus:
        address = bus.listen("127.0.0.1:0")
        with (
            closing(Stranger(address, KEYS, route)) as sly,
            closing(Stranger(address, KEYS)) as plain,
        ):
            sly.dealer.send_multipart([b"sly", b"more"])
            plain.dealer.send(b"plain")
            found = arrivals(bus, 1)
            deadline = time.monotonic() + DEADLINE_S
            while len(bus._listeners.all[0].keys_of) < 2:  # both have come
                found += [each for each in bus.poll(0.01) if isinstance(each, Arrived)]
                assert time.monotonic() < deadline
    assert [each.frames[0] for each in found] == [b"plain"]


# -- two doors ------------------------------------------------------------------------------------


def test_two_secrets_have_two_doors_and_routes_never_clash(peers: list[Peer]) -> None:
    two = doors((KEYS, NODES), (OTHER, CLIENTS))
    broker = Peer("broker", KEYS, Guard(new_token(), KEYS, two))
    for_nodes = broker.bus.listen("127.0.0.1:0", KEYS)
    for_clients = broker.bus.listen("127.0.0.1:0", OTHER)
    again = broker.bus.listen("127.0.0.1:0", Keys(b"the secret"))
    nodes = [Peer("node", KEYS) for _ in range(3)]
    clients = [Peer("client", OTHER) for _ in range(3)]
    peers += [broker, *nodes, *clients]
    for node, address in zip(nodes, (for_nodes, for_nodes, again), strict=True):
        node.exchange.dial(address)
    for client in clients:
        client.exchange.dial(for_clients)
    everybody = [*nodes, *clients]
    until(lambda: all(each.of(Joined) for each in everybody), broker, *everybody)
    routes = [link.route for link in broker.exchange.links.values()]
    assert len(set(routes)) == 6
    for number, each in enumerate(everybody):
        broker.exchange.send(each.guard.instance, Released(number))
    until(lambda: all(each.of(Received) for each in everybody), broker, *everybody)
    for number, each in enumerate(everybody):
        assert each.of(Received) == [Received(broker.guard.instance, Released(number))]


def test_a_node_s_secret_makes_nobody_a_client(peers: list[Peer]) -> None:
    two = doors((KEYS, NODES), (OTHER, CLIENTS))
    broker = Peer("broker", KEYS, Guard(new_token(), KEYS, two))
    addresses = [broker.bus.listen("127.0.0.1:0", keys) for keys in (KEYS, OTHER)]
    sly = [Peer("client", KEYS), Peer("client", KEYS), Peer("node", OTHER)]
    peers += [broker, *sly]
    for peer, address in zip(sly, (*addresses, addresses[1]), strict=True):
        peer.exchange.dial(address)
    until(lambda: all(peer.failures() for peer in sly), broker, *sly)
    said = [peer.failures()[0] for peer in sly]
    assert "is for a node or relay, not for a client" in said[0]
    assert "the secrets differ" in said[1]
    assert "is for a client, not for a node" in said[2]
    assert not broker.exchange.links


# -- who is asked about peers ---------------------------------------------------------------------


def test_while_nobody_answers_for_peers_nobody_comes_in() -> None:
    """The handler is in the loop: a loop that hangs must not open the door."""
    with closing(Bus(KEYS)) as bus, closing(Bus(KEYS)) as dialler:
        dialler.dial(bus.listen("127.0.0.1:0"))
        began = time.monotonic()
        found: list[object] = []
        while time.monotonic() < began + 1.0:  # a hundred times what it takes
            found += dialler.poll(0.1)
        assert found == []
        while not found:
            bus.poll(0.01)
            found += dialler.poll(0.01)
            assert time.monotonic() < began + DEADLINE_S
    assert isinstance(found[0], Up)


def test_without_a_handler_nobody_comes_in() -> None:
    with closing(Bus(KEYS)) as bus, closing(Bus(KEYS)) as dialler:
        address = bus.listen("127.0.0.1:0")
        assert bus._listeners._zap is not None
        bus._sockets.unregister(bus._listeners._zap)
        bus._listeners._zap.close(0)
        bus._listeners._zap = None
        dialler.dial(address)
        found: list[object] = []
        deadline = time.monotonic() + DEADLINE_S
        while not found:
            bus.poll(0.01)
            found += dialler.poll(0.01)
            assert time.monotonic() < deadline
    assert isinstance(found[0], Down)


KEY = st.binary(min_size=32, max_size=32)


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_every_question_is_answered(request_frames: list[bytes]) -> None:
    reply = curve.answer(request_frames)
    assert len(reply) == 6 and reply[0] == b"1.0" and reply[2] == b"400"
    assert reply[1] == (request_frames[1] if len(request_frames) > 1 else b"")


@given(KEY, st.integers(0, 6), st.binary(max_size=40))
def test_only_whole_questions_about_encrypted_connections_are_answered_with_yes(
    key: bytes, at: int, other: bytes
) -> None:
    right = [b"1.0", b"1", b"dispy", b"127.0.0.1", b"", b"CURVE", key]
    assert curve.answer(right) == [b"1.0", b"1", b"200", b"OK", z85.encode(key), b""]
    wrong = [*right[:at], other, *right[at + 1 :]]
    may_differ = at in (1, 3, 4) or (at == 6 and len(other) == 32) or other == right[at]
    assert (curve.answer(wrong)[2] == b"200") == may_differ


@pytest.mark.parametrize("frames", [[], [b"x"], [b"1.0", b"1", b"", b"", b"", b"NULL"]])
def test_bad_questions_don_t_end_the_loop(peers: list[Peer], frames: list[bytes]) -> None:
    node, broker = pair(peers, KEYS, KEYS)
    asking = node.bus._sockets.context.socket(zmq.REQ)
    asking.connect(curve.ZAP_ENDPOINT)
    asking.send_multipart(frames or [b""])
    until(lambda: asking.poll(0), node)
    assert asking.recv_multipart()[2] == b"400"
    asking.close(0)
    until(lambda: broker.of(Joined), node, broker)


# -- testing oneself ------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_a_secured_door_passes_the_test_at_once(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Bus(KEYS)) as bus:
        listening = bus.listen(address)
        began = time.monotonic()
        self_test(bus, [listening])
        assert time.monotonic() - began < 1.0
        assert bus.poll(0.1) in ([], [HungUp()])
    assert not warnings(caplog), "who was sent by ourselves is no stranger"


def test_an_open_door_fails_the_test() -> None:
    with closing(Bus()) as bus, pytest.raises(OpenDoor, match="without one"):
        self_test(bus, [bus.listen("127.0.0.1:0")])


def test_a_door_that_can_t_be_tested_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with closing(Bus(KEYS)) as bus:
            self_test(bus, ["{}:{}".format(*unused.getsockname())])
    assert "can't test whether" in warnings(caplog)[0]


# -- the end --------------------------------------------------------------------------------------


def test_closing_never_waits_for_long(peers: list[Peer]) -> None:
    """Whether peers are there, are being asked about, or have been refused."""
    node, broker = pair(peers, KEYS, KEYS)
    until(lambda: broker.of(Joined), node, broker)
    refused = Peer("broker", OTHER)
    refused.exchange.dial(node.bus.listen("127.0.0.1:0"))
    until(refused.failures, node, refused)
    asked_about = Peer("broker", KEYS)
    asked_about.exchange.dial(node.bus.listen("127.0.0.1:0"))
    until(
        lambda: (
            node.bus._listeners._zap and int(node.bus._listeners._zap.getsockopt(zmq.EVENTS)) & 1
        ),
        asked_about,
    )
    peers.clear()
    for peer in (node, broker, refused, asked_about):
        began = time.monotonic()
        peer.bus.close()
        assert time.monotonic() - began < 2.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted by /proc")
def test_closing_leaves_no_thread_and_no_descriptor() -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), psutil.Process().num_fds()

    before = held()
    for _ in range(5):
        with closing(Bus(KEYS)) as bus, closing(Bus(KEYS)) as dialler:
            dialler.dial(bus.listen("127.0.0.1:0"))
            deadline = time.monotonic() + DEADLINE_S
            while not dialler.poll(0.01):
                assert time.monotonic() < deadline
                bus.poll(0.01)
    gc.collect()
    assert held() <= before


def test_a_closed_connection_is_noticed_at_once(peers: list[Peer]) -> None:
    node, broker = pair(peers, KEYS, KEYS)
    until(lambda: broker.of(Joined), node, broker)
    peers.remove(node)
    before = time.monotonic()
    node.bus.close()
    until(lambda: broker.of(Away), broker)
    assert time.monotonic() - before < 1.0


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork here")
def test_a_forked_child_ends_without_the_parent_s_sockets() -> None:
    with closing(Bus(KEYS)) as bus, closing(Bus(KEYS)) as dialler:
        dialler.dial(bus.listen("127.0.0.1:0"))
        child = multiprocessing.get_context("fork").Process(target=forget, args=([bus],))
        child.start()
        child.join(DEADLINE_S)
        assert child.exitcode == 0
        found: list[object] = []
        deadline = time.monotonic() + DEADLINE_S
        while not found:  # and the parent's still work
            assert time.monotonic() < deadline
            bus.poll(0.01)
            found += dialler.poll(0.01)
    assert isinstance(found[0], Up)


def forget(buses: list[Bus]) -> None:
    buses[0].close()
    buses.clear()
    gc.collect()


PROGRAM = """
import sys
from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus
bus = Bus(Keys(b"s"))
dialler = Bus(Keys(b"s"))
dialler.dial(bus.listen("127.0.0.1:0"))
while not dialler.poll(0.01):
    bus.poll(0.01)
dialler.send(1, [b"never read"])
{}
"""


FORGOTTEN = "bus = dialler = None; import gc; gc.collect()"


@pytest.mark.parametrize(
    "end", ["", "sys.exit(3)", "raise OSError", "bus.close()", "del bus", FORGOTTEN]
)
def test_a_program_ends_whatever_it_has_left_open(end: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(end)]
    done = subprocess.run(command, timeout=30, capture_output=True, check=False)
    assert done.returncode == {"sys.exit(3)": 3, "raise OSError": 1}.get(end, 0), done.stderr


ALL_ADDRESSES = """
import faulthandler
faulthandler.dump_traceback_later(20)
import subprocess
from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
bus = Bus(Keys(b"s"))
address = bus.listen("*:0")
port = address.removeprefix("*:")
assert bus.listen("127.0.0.9:0") != address
for host in ("127.0.0.1", "127.0.0.7", "[::1]"):
    dialler = Bus(Keys(b"s"))
    dialler.dial(f"{host}:{port}")
    while not (found := dialler.poll(0.01)):
        bus.poll(0.01)
    assert type(found[0]).__name__ == "Up", found
    dialler.close()
try:
    Bus(Keys(b"s")).listen(address)
except OSError as error:
    print(error)
"""


def test_all_addresses_are_those_of_both_kinds() -> None:
    """In a network of its own, since nothing is to listen in a real one."""
    command = ["unshare", "-rn", sys.executable, "-c", ALL_ADDRESSES]
    if (
        not shutil.which("unshare")
        or subprocess.run([*command[:2], "true"], check=False).returncode
    ):
        pytest.skip("no network namespaces here")
    try:
        done = subprocess.run(command, timeout=30, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"it hangs: {late.stderr!r}")
    assert done.returncode == 0, done.stderr
    assert "can't listen at [::]:" in done.stdout and "Address already in use" in done.stdout


def test_keys_are_in_no_text() -> None:
    pair_ = curve.random_pair()
    assert pair_.private.decode() not in repr(pair_) and pair_.public.decode() in repr(pair_)
