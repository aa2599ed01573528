"""Real sockets on loopback: connecting, sending, breaking, and saying why not."""

from __future__ import annotations

import ast
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dispy.protocol.events import Away, DialFailed, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.identity import describe, random_name
from dispy.protocol.messages import Done, Identity, JobResult, JobSpec, Run
from dispy.protocol.transport import Bus
from dispy.protocol.wire import chunked

from .buspeers import BusPeer, until


class Peer(BusPeer):
    """One end without a secret."""

    def __init__(self, role: str, admit: Callable[[Identity], str] = lambda _: "") -> None:
        bus = Bus()
        super().__init__(bus, Exchange(describe(role, "1"), bus, random_name, admit))


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    made: list[Peer] = []
    yield made
    for peer in made:
        peer.bus.close()


def pair(peers: list[Peer], address: str) -> tuple[Peer, Peer]:
    node, broker = Peer("node"), Peer("broker")
    peers += [node, broker]
    broker.exchange.dial(node.bus.listen(address))
    until(lambda: node.of(Joined) and broker.of(Joined), node, broker)
    return node, broker


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "inproc://test-transport"])
def test_messages_and_large_payloads_go_both_ways(peers: list[Peer], address: str) -> None:
    node, broker = pair(peers, address)
    content = bytes(range(256)) * 40_000  # ten chunks
    spec = JobSpec(1, 1, b"", [chunked(content)])
    broker.exchange.send(node.exchange.identity.instance, Run(7, [spec]))
    until(lambda: node.of(Received), node, broker)
    (event,) = node.of(Received)
    assert isinstance(event, Received) and isinstance(event.message, Run)
    part = event.message.jobs[0].parts[0]
    assert part.size == len(content) and part.tobytes() == content
    back = Done(7, [JobResult(1, 1, 11, 0.0, 1.0, b"", [part])])
    node.exchange.send(event.peer, back)
    until(lambda: broker.of(Received), node, broker)
    (event,) = broker.of(Received)
    assert isinstance(event, Received) and event.message == back


def test_a_refused_connection_says_so(peers: list[Peer]) -> None:
    broker = Peer("broker")
    peers.append(broker)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    broker.exchange.dial(f"127.0.0.1:{port}")
    until(lambda: broker.of(DialFailed), broker)
    (event,) = broker.of(DialFailed)
    assert isinstance(event, DialFailed) and "nothing listens there" in event.reason


def test_a_listener_that_goes_before_it_is_connected_to_is_tried_again(peers: list[Peer]) -> None:
    """A connection is made in two steps, and its end between them mustn't be missed."""
    broker = Peer("broker")
    peers.append(broker)
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker.exchange.dial(f"127.0.0.1:{server.getsockname()[1]}")
        broker.turn()
        server.accept()[0].close()  # the first step
    until(lambda: len(broker.of(DialFailed)) >= 2, broker)
    first, second = broker.of(DialFailed)[:2]
    assert isinstance(first, DialFailed) and first.reason == "the connection was closed"
    assert isinstance(second, DialFailed) and "refused" in second.reason


def test_a_server_of_another_kind_is_told_from_a_peer(peers: list[Peer]) -> None:
    broker = Peer("broker")
    peers.append(broker)
    with socket.create_server(("127.0.0.1", 0)) as other:
        broker.exchange.dial(f"127.0.0.1:{other.getsockname()[1]}")
        until(lambda: broker.of(DialFailed), broker)
    (event,) = broker.of(DialFailed)[:1]
    assert isinstance(event, DialFailed) and "isn't a dispy peer" in event.reason


@pytest.mark.parametrize(
    "banner", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_a_server_that_speaks_first_is_told_from_a_peer(peers: list[Peer], banner: bytes) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = Peer("client")
    peers.append(client)
    client.exchange.dial(f"127.0.0.1:{server.getsockname()[1]}")
    accepted: list[socket.socket] = []  # kept open, as such a server does
    server.settimeout(0.0)

    def fails() -> object:
        with suppress(BlockingIOError):
            accepted.append(server.accept()[0])
            accepted[-1].sendall(banner)
        return client.of(DialFailed)

    with server:
        until(fails, client)
    (event,) = client.of(DialFailed)
    assert isinstance(event, DialFailed) and "isn't a dispy peer" in event.reason
    for each in accepted:
        each.close()


def test_a_refusal_reaches_the_user(peers: list[Peer]) -> None:
    node, broker = Peer("node", lambda identity: "no brokers today"), Peer("broker")
    peers += [node, broker]
    broker.exchange.dial(node.bus.listen("127.0.0.1:0"))
    until(lambda: broker.of(DialFailed), node, broker)
    (event,) = broker.of(DialFailed)
    assert isinstance(event, DialFailed) and "no brokers today" in event.reason


def test_a_closed_connection_is_noticed_at_once(peers: list[Peer]) -> None:
    node, broker = pair(peers, "127.0.0.1:0")
    peers.remove(node)
    before = time.monotonic()
    node.bus.close()
    until(lambda: broker.of(Away), broker)
    assert time.monotonic() - before < 1.0


def test_garbage_is_dropped_and_counted(peers: list[Peer]) -> None:
    node, broker = pair(peers, "127.0.0.1:0")
    route = broker.exchange.links[node.exchange.identity.instance].route
    assert route is not None
    broker.bus.send(route, [b"\xc1 no msgpack"])
    until(lambda: node.exchange.malformed, node, broker)
    until(lambda: broker.of(Left), node, broker)  # and it is told why


def test_a_taken_port_is_an_error_with_the_address(peers: list[Peer]) -> None:
    node, other = Peer("node"), Peer("node")
    peers += [node, other]
    address = node.bus.listen("127.0.0.1:0")
    with pytest.raises(OSError, match=address):
        other.bus.listen(address)


def test_nobody_else_opens_a_socket() -> None:
    root = Path(__file__).parents[1]
    for folder in ("client", "node", "broker", "relay", "protocol"):
        for path in (root / folder).rglob("*.py"):
            calls = [
                node
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and node.attr in ("socket", "Context")
                if isinstance(node.value, ast.Name) and node.value.id in ("context", "zmq", "ctx")
            ]
            assert not calls or path.name == "sockets.py", path
