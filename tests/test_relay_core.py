"""The relay's decisions, played by hand: what it says to the broker and to the peers behind it."""

from __future__ import annotations

import msgspec

from dispy.protocol.arrivals import Arrived, Down, HungUp, Route, Up
from dispy.protocol.events import DialFailed
from dispy.protocol.exchange import ROUND_S
from dispy.protocol.framecache import LONG_BYTES, MISSED, digest_of
from dispy.protocol.guard import Guard
from dispy.protocol.identity import new_token
from dispy.protocol.keys import Keys
from dispy.protocol.link import RELAYED_SILENCE_S, SILENCE_S
from dispy.protocol.messages import (
    CARRIED,
    DROPPED,
    INTRODUCED,
    LOST,
    MARK,
    MARKED,
    VERSION_MAJOR,
    VERSION_MINOR,
    Buffer,
    Cached,
    Envelope,
    Frame,
    Goodbye,
    Hello,
    Identity,
    Nudge,
    Refused,
    Relayed,
    Unknown,
    Welcome,
)
from dispy.protocol.pacing import FULL_BYTES, WAY_MAX_BYTES
from dispy.protocol.wire import Codec
from dispy.relay.callers import PATIENCE_S
from dispy.relay.core import Relay
from dispy.relay.downward import ALL_WAITING_MAX_BYTES, WAITING_MAX_BYTES
from dispy.relay.engagement import KEEP_S

from .memoryshelf import MemoryShelf

ME = Identity("relay", "r", "bridge", "0", "3", "Linux")
BROKER = Identity("broker", "b", "boss", "0", "3", "Linux")
OTHER = Identity("broker", "o", "other", "0", "3", "Linux")
NODE = Identity("node", "n", "worker", "0", "3", "Linux")
CLIENT = Identity("client", "c", "program", "0", "3", "Linux")
UP, DOOR, DOOR2 = b"up", b"1", b"2"  # accepted connections: of the broker, of nodes
PLACE = "127.0.0.1:9711"


class Wire:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Route, list[Buffer]]] = []
        self.dialled: dict[Route, str] = {}
        self.dropped: list[Route] = []
        self.stuck: set[Route] = set()

    def dial(self, address: str) -> Route:
        route = len(self.dialled) + 1
        self.dialled[route] = address
        return route

    def drop(self, route: Route) -> None:
        self.dropped.append(route)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        if route in self.stuck:
            return False
        self.sent.append((route, frames))
        return True


def hello(who: Identity, token: bytes = b"", proof: bytes = b"") -> Hello:
    return Hello(VERSION_MAJOR, VERSION_MINOR, who, token=token, proof=proof)


def encoded(*frames: Frame | bytes) -> list[Buffer]:
    return [each if isinstance(each, bytes) else Codec().encode(each)[0] for each in frames]


def decoded(frames: list[Buffer]) -> list[Frame | bytes]:
    """Decode what was sent; payloads, which begin with an x, stay as they are."""
    return [bytes(each) if each[0] == ord("x") else Codec().decode(each)[0] for each in frames]


class Stage:
    """A relay, and what it does, step by step."""

    def __init__(self, relay_guard: Guard | None = None) -> None:
        self.wire = Wire()
        more = () if relay_guard is None else (relay_guard,)
        self.relay = Relay(ME, self.wire, lambda: "s", MemoryShelf, *more)
        self.now = 0.0

    def says(self, route: Route, *frames: Frame | bytes) -> list[tuple[Route, list[Frame | bytes]]]:
        """Let something arrive; return what follows."""
        self.relay.receive(Arrived(route, encoded(*frames)), self.now)
        return self.follows()

    def follows(self) -> list[tuple[Route, list[Frame | bytes]]]:
        """Return what is sent, beats on the trunk left out."""
        self.relay.tick(self.now)
        self.relay.flush(self.now)
        self.relay.check()
        sent, self.wire.sent = self.wire.sent, []
        said = [(route, decoded(frames)) for route, frames in sent]
        return [each for each in said if not isinstance(each[1][0], Envelope)]

    def after(self, seconds: float) -> list[tuple[Route, list[Frame | bytes]]]:
        """Let time pass, in which the broker beats."""
        self.now += seconds
        return self.follows()

    def beat(self) -> None:
        """Let the broker give a sign of life."""
        self.says(UP, Envelope(1, 0, 0, []))

    def up(self, who: Identity = BROKER) -> None:
        """Let the broker dial in."""
        [(route, [welcome])] = [
            each for each in self.says(UP, hello(who)) if isinstance(each[1][0], Welcome)
        ]
        assert route == UP and isinstance(welcome, Welcome)

    def with_place(self) -> Route:
        """Let the relay dial a node, and tell the broker."""
        self.relay.dial_down(PLACE)
        self.up()
        self.follows()
        [route] = self.wire.dialled
        self.relay.receive(Up(route), self.now)
        assert self.follows() == [(UP, [Relayed(1, INTRODUCED, PLACE)])]
        return route


def test_what_a_child_says_goes_up_with_its_number_and_back() -> None:
    stage = Stage()
    stage.up()
    assert stage.says(DOOR, hello(NODE)) == [(UP, [Relayed(1), hello(NODE)])]
    assert stage.says(DOOR2, hello(NODE)) == [(UP, [Relayed(2), hello(NODE)])]
    assert stage.says(DOOR, b"xany", b"xpayload") == [(UP, [Relayed(1), b"xany", b"xpayload"])]
    assert stage.says(UP, Relayed(2), b"xback", b"xmore") == [(DOOR2, [b"xback", b"xmore"])]
    assert stage.says(UP, Relayed(7), b"xback") == []


def test_relays_in_a_row_put_one_number_before_the_other() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(ME))
    up = [(UP, [Relayed(1), Relayed(5), b"xany"])]
    assert stage.says(DOOR, Relayed(5), b"xany") == up
    assert stage.says(UP, Relayed(1), Relayed(5), b"xback") == [(DOOR, [Relayed(5), b"xback"])]


def test_a_hello_waits_for_an_up_link() -> None:
    stage = Stage()
    assert stage.says(DOOR, hello(NODE)) == []
    assert stage.says(DOOR, b"xearly") == []
    said = stage.says(UP, hello(BROKER))
    assert [type(frames[0]).__name__ for _, frames in said] == ["Welcome", "Relayed"]
    assert said[1] == (UP, [Relayed(1), hello(NODE)])


def test_a_hello_does_not_wait_for_ever() -> None:
    stage = Stage()
    stage.says(DOOR, hello(NODE))
    assert stage.after(PATIENCE_S - 0.1) == []
    assert stage.after(0.4) == [(DOOR, [Refused("relay bridge has no broker at present")])]


def test_one_broker_at_a_time() -> None:
    stage = Stage()
    stage.up()
    refused = [(b"9", [Refused("this relay works for boss")])]
    assert stage.says(b"9", hello(OTHER)) == refused
    stage.says(UP, Goodbye("done"))
    [(_, [welcome])] = stage.says(b"9", hello(OTHER))
    assert isinstance(welcome, Welcome)


def test_a_broker_that_is_away_for_long_is_replaced() -> None:
    stage = Stage()
    stage.up()
    stage.after(20.0)  # silent
    assert stage.relay.trunk is None
    stage.after(2.0)
    waits = Refused(f"this relay waits {KEEP_S - 2.0:.0f} s more for boss to come back")
    assert stage.says(b"9", hello(OTHER)) == [(b"9", [waits])]
    stage.after(KEEP_S - 2.0 + 0.1)
    [(_, [welcome])] = stage.says(b"9", hello(OTHER))
    assert isinstance(welcome, Welcome)


def test_that_its_broker_is_away_is_said_once_however_often_it_is_dialled() -> None:
    stage = Stage()
    relay = stage.relay
    relay.dial_up("10.0.0.1:9700")
    stage.follows()
    stage.after(1.0)
    [route] = stage.wire.dialled
    relay.receive(Up(route), stage.now)
    stage.follows()
    welcome = Welcome(VERSION_MINOR, BROKER, "s", 1)
    assert stage.says(route, welcome) == []
    relay.news.clear()
    gone_at, tries = stage.now, 0
    while relay.broker and tries < 100:
        tries += 1
        relay.receive(Down(max(stage.wire.dialled), "nothing listens there", True), stage.now)
        stage.after(2.5)
    said = [news.text for news in relay.news]
    assert said == [
        "boss can't be reached: nothing listens there",
        "boss is given up: another may use this relay",
    ]
    assert tries > 2 and KEEP_S < stage.now - gone_at < KEEP_S + 10.0


def test_clients_are_told_to_go_elsewhere() -> None:
    stage = Stage()
    said = "a relay takes nodes, relays and brokers, not a client"
    assert stage.says(DOOR, hello(CLIENT)) == [(DOOR, [Refused(said)])]


def test_all_children_begin_anew_when_the_trunk_is_gone() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    assert stage.says(UP, Goodbye("done")) == [(DOOR, [Unknown()])]
    assert stage.says(DOOR, Envelope(1, 1, 0, [])) == [(DOOR, [Unknown()])]


def test_another_connection_of_the_broker_is_another_trunk() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    said = stage.says(b"up2", hello(BROKER))
    assert (DOOR, [Unknown()]) in said
    assert stage.says(DOOR2, hello(NODE)) == [(b"up2", [Relayed(2), hello(NODE)])]


def test_a_node_is_dialled_for_the_broker_and_greeted_by_it() -> None:
    stage = Stage()
    route = stage.with_place()
    assert stage.says(route, b"xbefore") == []
    assert stage.says(UP, Relayed(1), hello(BROKER)) == [(route, [hello(BROKER)])]
    assert stage.says(route, Envelope(1, 1, 0, [])) == []  # before the answer
    welcome = Welcome(0, NODE, "s", 1)
    assert stage.says(route, welcome) == [(UP, [Relayed(1), welcome])]
    assert stage.says(route, b"xany") == [(UP, [Relayed(1), b"xany"])]


def test_one_of_several_addresses_is_used() -> None:
    stage = Stage()
    stage.relay.dial_down(PLACE, "n")
    stage.relay.dial_down("127.0.0.2:9711", "n")
    stage.up()
    stage.follows()
    first, second = stage.wire.dialled
    stage.relay.receive(Up(second), 0.0)
    assert stage.follows() == [(UP, [Relayed(1, INTRODUCED, "127.0.0.2:9711")])]
    stage.relay.receive(Up(first), 0.0)
    assert stage.follows() == []
    assert first in stage.wire.dropped
    stage.relay.undial_down("127.0.0.2:9711", "n")
    assert stage.follows() == [(UP, [Relayed(1, LOST, "its address was given up")])]
    stage.beat()
    stage.after(2.1)
    assert list(stage.wire.dialled.values()) == [PLACE, "127.0.0.2:9711", PLACE]


def test_who_has_dialled_is_not_dialled() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    assert stage.relay.knows("n")
    stage.relay.dial_down(PLACE, "n")
    stage.follows()
    assert not stage.wire.dialled
    stage.relay.receive(Down(DOOR, "closed"), 0.0)
    stage.after(0.5)
    assert stage.relay.gone == ["n"]
    assert list(stage.wire.dialled.values()) == [PLACE]


def test_a_node_that_falls_silent_is_given_up_like_one_without_a_relay() -> None:
    """A relay behind this one has more time: what it says may come a slow way."""
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.says(DOOR2, hello(msgspec.structs.replace(ME, instance="behind")))
    lost: dict[int, float] = {}
    while len(lost) < 2:
        stage.beat()
        for _, [said] in stage.after(ROUND_S):
            assert isinstance(said, Relayed) and said.event == LOST
            lost[said.child] = stage.now
        if stage.now < 1.0:
            stage.says(DOOR, Envelope(1, 0, 0, []))
    assert 1.0 + SILENCE_S <= lost[1] <= 1.0 + SILENCE_S + 3 * ROUND_S
    assert RELAYED_SILENCE_S <= lost[2] <= RELAYED_SILENCE_S + 3 * ROUND_S


def test_dead_addresses_do_not_make_a_node_seem_silent_sooner() -> None:
    """Each has the relay look again at times of its own."""
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    seen: set[Route] = set()
    beats = rounds = dead = 0
    while stage.now < 4 * SILENCE_S:
        stage.beat()
        if stage.now >= 2 * beats:
            stage.says(DOOR, Envelope(1, 0, 0, []))
            beats += 1
        if dead < 30 and stage.now >= 0.07 * dead:
            dead += 1
            stage.relay.dial_down(f"127.0.0.2:{9700 + dead}")
        for route in stage.wire.dialled.keys() - seen:
            stage.relay.receive(Down(route, "connection refused"), stage.now)
        seen |= stage.wire.dialled.keys()
        stage.after(max(0.01, stage.relay.deadline() - stage.now))
        assert stage.relay.knows("n"), f"given up {stage.now - 2 * (beats - 1)} s after a beat"
        rounds += 1
    assert rounds > 2 * stage.now / ROUND_S  # they were more often than without those addresses


def test_a_child_brings_nothing_with_its_hello() -> None:
    stage = Stage()
    reason = "its Hello brings more than that"
    assert stage.says(DOOR, hello(NODE), b"xmore") == [(DOOR, [Refused(reason)])]
    assert stage.relay.children == 0
    stage.up()
    assert stage.says(DOOR, hello(NODE), b"xmore") == [(DOOR, [Refused(reason)])]


def test_nodes_are_not_dialled_without_a_broker() -> None:
    stage = Stage()
    stage.relay.dial_down(PLACE)
    stage.after(1.0)
    assert not stage.wire.dialled


def test_a_node_that_the_broker_forgets_to_greet_is_introduced_again() -> None:
    stage = Stage()
    stage.with_place()
    for _ in range(4):
        stage.beat()
        said = stage.after(1.0)
    assert said == [(UP, [Relayed(1, LOST, "the broker didn't greet it")])]
    stage.after(0.5)
    assert len(stage.wire.dialled) == 2


def test_the_end_of_a_connection_is_told_after_what_came_before() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.relay.receive(Arrived(DOOR, encoded(b"xlast")), 0.0)
    stage.relay.receive(Down(DOOR, "closed"), 0.0)
    up = [(UP, [Relayed(1), b"xlast"]), (UP, [Relayed(1, LOST, "closed")])]
    assert stage.follows() == up
    assert stage.relay.children == 0


def test_that_nothing_listens_any_more_proves_the_end() -> None:
    stage = Stage()
    route = stage.with_place()
    stage.relay.receive(Down(route, "closed"), 0.0)
    assert stage.follows() == [(UP, [Relayed(1, LOST, "closed")])]
    stage.after(0.2)
    [_, again] = stage.wire.dialled
    stage.relay.receive(Down(again, "refused", refused=True), stage.now)
    assert stage.follows() == [(UP, [Relayed(1, LOST, "refused", refused=True)])]
    stage.beat()
    stage.after(0.5)
    last = list(stage.wire.dialled)[-1]
    stage.relay.receive(Down(last, "refused", refused=True), stage.now)
    assert stage.follows() == []  # it has been said
    assert stage.relay.failed[-1] == DialFailed(PLACE, "refused")


def test_a_peer_that_the_broker_drops_begins_anew() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    assert stage.says(UP, Relayed(1, DROPPED)) == [(DOOR, [Unknown()])]
    assert stage.says(UP, Relayed(1), b"xany") == []


def test_a_node_that_is_dropped_is_dialled_again() -> None:
    stage = Stage()
    route = stage.with_place()
    stage.says(UP, Relayed(1, DROPPED, refused=True))
    assert route in stage.wire.dropped
    for _ in range(4):
        stage.beat()
        stage.after(1.0)
    assert len(stage.wire.dialled) == 1
    stage.beat()
    stage.after(1.1)
    assert len(stage.wire.dialled) == 2


def test_after_a_hangup_all_that_have_dialled_are_tried() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.relay.receive(HungUp(), 0.0)
    assert (DOOR, [Nudge()]) in stage.follows()


def test_marks_are_answered() -> None:
    stage = Stage()
    stage.up()
    assert stage.says(UP, Relayed(3, MARK)) == [(UP, [Relayed(3, MARKED)])]


def test_what_goes_up_is_bounded_while_the_broker_does_not_take_it_in() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    payload = b"x" * (1 << 20)
    sent = 0
    while not stage.relay.is_full:
        sent += len(payload)
        assert sent < 2 * (FULL_BYTES + WAY_MAX_BYTES)
        stage.says(DOOR, b"xany", payload)
    stage.relay.receive(Down(UP, "closed"), 0.0)
    assert stage.relay.has_room


def test_answered_marks_let_more_go_up() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    payload = b"x" * (1 << 20)
    carried = 0
    said = []
    for _ in range(40):
        said += stage.says(DOOR, b"xany", payload)
    while said:
        carried += sum(1 for _, frames in said if frames[0] == Relayed(1, CARRIED))
        marks = [number for _, frames in said for number in mark_in(frames[0])]
        said = [each for mark in marks for each in stage.says(UP, Relayed(mark, MARKED))]
    assert carried == 40
    assert stage.relay.has_room


def mark_in(frame: Frame | bytes) -> list[int]:
    return [frame.child] if isinstance(frame, Relayed) and frame.event == MARK else []


def test_a_child_that_takes_nothing_in_is_given_up() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.says(DOOR2, hello(NODE))
    stage.wire.stuck.add(DOOR)
    payload = b"x" * (1 << 20)
    for _ in range(WAITING_MAX_BYTES >> 20):
        assert stage.says(UP, Relayed(2), payload) == [(DOOR2, [payload])]
        said = stage.says(UP, Relayed(1), payload)
    assert said == [(UP, [Relayed(1, LOST, "it is too slow")])]


def test_the_slowest_child_is_given_up_when_much_waits_for_all_together() -> None:
    stage = Stage()
    stage.up()
    payload = b"x" * (1 << 20)
    count = 12
    doors = [b"%d" % number for number in range(count)]
    for number, door in enumerate(doors, 1):
        stage.says(door, hello(msgspec.structs.replace(NODE, instance=f"n{number}")))
    stage.wire.stuck.update(doors)
    for _ in range((ALL_WAITING_MAX_BYTES >> 20) // count):
        for number in range(1, count + 1):
            assert stage.says(UP, Relayed(number), payload) == []
    said: list[tuple[Route, list[Frame | bytes]]] = []
    while not said:
        said = stage.says(UP, Relayed(7), payload)
    assert said == [(UP, [Relayed(7, LOST, "it is too slow")])]


def test_what_waits_for_a_child_comes_in_order() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.wire.stuck.add(DOOR)
    stage.says(UP, Relayed(1), b"x1")
    stage.says(UP, Relayed(1), b"x2")
    stage.wire.stuck.clear()
    assert stage.says(UP, Relayed(1), b"x3") == [(DOOR, [b"x1"]), (DOOR, [b"x2"]), (DOOR, [b"x3"])]


def test_a_relay_that_stops_tells_everybody() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.relay.stop()
    assert stage.follows() == [(DOOR, [Unknown()]), (UP, [Goodbye("the relay was stopped")])]


def test_nonsense_is_dropped() -> None:
    stage = Stage()
    assert stage.says(DOOR, b"xnonsense") == []
    stage.up()
    stage.says(UP, Relayed(0), b"xany")
    stage.says(DOOR, b"xnonsense")
    stage.relay.receive(Arrived(DOOR, []), 0.0)
    assert stage.relay.malformed == 3
    assert stage.relay.children == 0


LONG = b"x" * LONG_BYTES


def test_what_was_left_out_on_the_trunk_is_put_back() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    stage.says(DOOR2, hello(NODE))
    digest = digest_of(LONG)
    said = stage.says(UP, Cached([]), Relayed(1), b"x1", LONG)
    assert said == [(DOOR, [b"x1", LONG])]
    said = stage.says(UP, Cached([(2, digest)]), Relayed(2), b"x2", b"xend")
    assert said == [(DOOR2, [b"x2", LONG, b"xend"])]


def test_a_child_begins_anew_when_something_is_missing() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(NODE))
    said = stage.says(UP, Cached([(2, digest_of(LONG))]), Relayed(1), b"x1")
    assert said == [(DOOR, [Unknown()]), (UP, [Relayed(1, LOST, MISSED)])]


def test_nothing_goes_twice_to_a_relay_behind_this_one() -> None:
    stage = Stage()
    stage.up()
    stage.says(DOOR, hello(ME))
    stage.says(UP, Relayed(1), Relayed(1), b"x1", LONG)
    cached = Cached([(2, digest_of(LONG))])
    again = [(DOOR, [cached, Relayed(2), b"x2"])]
    assert stage.says(UP, Relayed(1), Relayed(2), b"x2", LONG) == again
    stage.says(DOOR, Relayed(2, LOST, MISSED))
    [(_, frames)] = stage.says(UP, Relayed(1), Relayed(2), b"x2", LONG)
    assert LONG in frames


KEYS = Keys(b"1" * 32)


def guarded() -> Guard:
    return Guard(new_token(), KEYS)


def who_is(role: str, guard: Guard) -> Identity:
    return Identity(role, guard.instance, role, "0", "3", "Linux")


def test_a_child_has_to_prove_who_it_is() -> None:
    stage = Stage(guarded())
    node, broker = guarded(), guarded()
    me = who_is("node", node)
    key = b"k" * 40
    stage.relay.receive(
        Arrived(UP, encoded(_proven(broker, who_is("broker", broker), key)), key), 0.0
    )
    stage.follows()
    stage.relay.receive(Arrived(DOOR, encoded(_proven(node, me, b"another")), key), 0.0)
    [(route, [refused])] = stage.follows()
    assert route == DOOR and isinstance(refused, Refused)
    stage.relay.receive(Arrived(DOOR, encoded(_proven(node, me, key)), key), 0.0)
    assert stage.follows() == [(UP, [Relayed(1), _proven(node, me, key)])]


def _proven(guard: Guard, who: Identity, key: bytes) -> Hello:
    return hello(who, *guard.present(who.role, who.instance, key))


def test_the_relay_signs_a_hello_for_the_connection_that_it_has_dialled() -> None:
    stage = Stage(guarded())
    broker, node = guarded(), guarded()
    me = who_is("broker", broker)
    key, own = b"k" * 40, b"o" * 40
    stage.relay.dial_down(PLACE)
    stage.relay.receive(Arrived(UP, encoded(_proven(broker, me, key)), key), 0.0)
    stage.follows()
    [route] = stage.wire.dialled
    stage.relay.receive(Up(route, own), 0.0)
    stage.follows()
    [(_, [signed])] = stage.says(UP, Relayed(1), hello(me, broker.token))
    assert isinstance(signed, Hello)
    assert node.refuse(signed, own, 0) == ""
    assert node.refuse(signed, key, 0) != ""
