"""A broker, its clients and some nodes in virtual time: the stage for every scenario.

A world does nothing by itself; a scenario starts processes, has the user do things and lets
faults happen. One seed is one run, to the byte.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from dispy.broker.settings import Settings
from dispy.job import DispyJob
from dispy.protocol.messages import (
    ABANDONED,
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    DRAIN,
    RESETUP,
    RESUME,
    Attach,
    Body,
    Buffer,
    CancelJobs,
    Code,
    ComputationSpec,
    FileSpec,
    Identity,
    JobSpec,
    Large,
    NodeInfo,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Operate,
    Report,
    SendFile,
)

from .broker import BrokerProcess
from .clock import Clock
from .disk import Disk
from .jobs import HANG_S, Course, Diary, Jobs
from .network import End, Network, Socket
from .processes import ClientProcess, NodeProcess, Process, Record
from .relays import Outpost, RelayProcess
from .rescuer import Rescuer

BROKER_DOOR = "10.0.0.1:9702"
SOFTWARE = "0"


@dataclass
class Machine:
    """A place for a node, which may be started there again and again."""

    name: str
    address: str
    cpus: int
    dials: bool  # the node dials the broker; else it waits to be dialled
    setup_fails: set[str] = field(default_factory=set)  # names of computations
    setup_hangs: set[str] = field(default_factory=set)
    outpost: Outpost | None = None  # the relay that it is behind
    lives: int = 0
    node: NodeProcess | None = None  # while one lives

    @property
    def spec(self) -> NodeSpec:
        """What a cluster says to get this node."""
        host, _, port = self.address.rpartition(":")
        return NodeSpec(host, 0 if self.dials or self.outpost else int(port))

    @property
    def comes(self) -> bool:
        """Whether its node comes to the broker whatever that wants."""
        return self.dials if self.outpost is None else self.outpost.comes


@dataclass
class Wish:
    """What the user has asked for in a cluster, to be compared with what was done."""

    opening: OpenCluster
    client: ClientProcess  # that has opened it
    courses: dict[int, Course] = field(default_factory=dict)  # by seq
    cancelled: set[int] = field(default_factory=set)
    layers: int = 1  # of code that have been defined
    sent_away: set[str] = field(default_factory=set)  # lives of nodes that were closed
    closed_some: bool = False
    ended_some: bool = False  # with a node that was closed
    offers_wanted: bool = True  # nodes that are offered are used
    is_closing: bool = False
    closes: bool = False  # its user closes it as soon as all jobs have ended
    is_taken: bool = False  # from its client, which is dead or is to lose it
    is_orphan: bool = False  # and nobody will ever take it over
    accepted: set[int] = field(default_factory=set)  # jobs, when it was taken
    heirs: list[Rescuer] = field(default_factory=list)  # that have taken it over

    @property
    def name(self) -> str:
        """What the nodes call it."""
        return self.opening.computation.name

    @property
    def record(self) -> Record:
        """What its client has been told."""
        return self.client.records[self.opening.cluster]


class World:
    """All processes, and what users want of them."""

    broker: BrokerProcess  # its latest life

    def __init__(self, seed: int | str, settings: Settings | None = None) -> None:
        self.seed = seed
        self.settings = settings or Settings()
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.network = Network(self.clock, random.Random(self.chance.random()))
        self.diary = Diary()
        self.machines: dict[str, Machine] = {}
        self.outposts: dict[str, Outpost] = {}
        self.wishes: dict[int, Wish] = {}
        self.digest = 0  # of every message that has arrived, and when
        self.healed_at = 0.0  # when the last fault is over
        self.log: list[str] = []  # what was done to the world
        self.longest_pause_s = 0.0  # of a node; limits of time hold while nodes look at them
        self.killed_processes = False
        self.lost_nodes = False
        self.failing_forks = False
        self.has_tampered = False
        self.has_slowed = False  # so that jobs move away while their files come
        self.network.watch = self._on_message
        self.disk = Disk() if self.settings.durable else None
        self.broker_lives = 0
        self.drained: set[str] = set()  # nodes, by name
        self.rescuers: list[Rescuer] = []  # at work
        self._requests = 0
        self.rescues = 0  # so far
        self.operations: dict[int, tuple[str, str]] = {}  # action and node, by request
        self.clients: list[ClientProcess] = []
        self.start_broker()
        self.client = self.add_client()

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.clock.now

    def note(self, text: str) -> None:
        """Write down what happens to the world, for whoever looks at a failing seed."""
        self.log.append(f"{self.now:9.3f} {text}")

    def _on_message(self, end: End, frames: list[Buffer]) -> None:
        self.digest = zlib.crc32(frames[0], self.digest)
        self.digest = zlib.crc32(b"%.9f" % self.now, self.digest)

    # -- the broker and its clients ----------------------------------------------------------

    def start_broker(self) -> None:
        """Start the broker, with what is on its disk; one that lives goes on."""
        if self.broker_lives and self.broker.socket.alive:
            return
        self.broker_lives += 1
        life = self.broker_lives
        self.note(f"start broker, for the time number {life}")
        self.network.silent.discard(BROKER_DOOR)
        instance = "broker" if self.disk is not None or life == 1 else f"broker.{life}"
        self.broker = BrokerProcess(
            self.clock,
            Socket(self.network, "broker", BROKER_DOOR),
            identity("broker", instance),
            self.settings,
            self.disk,
            life,
        )
        self.broker.drained = self.drained
        self.broker.on_killed = self.kill_broker
        self.broker.restore()
        self.broker.wake()

    def kill_broker(self, is_machine_lost: bool = False) -> None:
        """Kill the broker -9, or have its machine lose power."""
        if not self.broker.socket.alive:
            return
        where = self.broker.dies_at or "between two turns"
        self.note(f"kill broker at {where}, machine lost: {is_machine_lost}")
        if is_machine_lost:
            self.network.silent.add(BROKER_DOOR)
        if self.disk is not None and not self.broker.is_in_turn:
            self.disk.check_agrees(self.broker.scheduler.state)
        self.broker.kill(is_machine_lost)
        for wish in self.wishes.values():
            wish.sent_away.clear()  # which isn't kept

    def add_client(self) -> ClientProcess:
        """Start one more program."""
        count = len(self.clients)
        name = f"client{count + 1}" if count else "client"
        chance = random.Random(f"{name} of {self.seed}")
        who = msgspec.structs.replace(identity("client", name), user=f"user{count % 2}")
        client = ClientProcess(self.clock, Socket(self.network, name), who, chance)
        client.cpus_of_offer = self._cpus_of_offer
        client.on_answer = self._on_answer
        client.on_node = self._on_node
        client.on_report = self._on_report
        self.clients.append(client)
        client.exchange.dial(BROKER_DOOR)
        client.wake()
        return client

    def kill_client(self, client: ClientProcess) -> None:
        """Kill a program -9; its clusters are left to others."""
        self.note(f"kill {client.identity.instance}")
        client.kill()
        self.leave(client)

    def leave(self, client: ClientProcess) -> None:
        """The clusters of a program are for others from now on."""
        for number, wish in self.wishes.items():
            if wish.client is client and not wish.record.is_closed and not wish.is_taken:
                wish.is_taken = True
                cluster = client.core.clusters.get(number)
                if cluster is not None:
                    wish.accepted = {seq for seq in wish.courses if seq in cluster.accepted}

    def rescue(self, client: ClientProcess, force: bool, patience_s: float) -> None:
        """Have another program take over what a client has left."""
        numbers = [
            number
            for number, wish in self.wishes.items()
            if wish.client is client and wish.is_taken and not is_settled(wish)
        ]
        if not numbers:
            return
        if any(wish.opening.exclusive for wish in self.wishes.values()):
            numbers = numbers[:1]  # others may have to wait until it is closed
        owner = client.identity.instance
        wanted = [Attach(each, owner=owner, number=each, force=force) for each in numbers]
        self.rescues += 1  # so far
        name = f"rescuer{self.rescues}"
        self.note(f"{name} takes over {numbers}, for {patience_s} s, by force: {force}")
        socket, until = Socket(self.network, name), self.now + patience_s
        done = partial(self._on_rescued, client, force)
        orders = {each: self._go_on(self.wishes[each]) for each in numbers}
        rescuer = Rescuer(self.clock, socket, identity("client", name), wanted, until, orders, done)
        rescuer.on_report = self._on_report
        self.rescuers.append(rescuer)
        for number in numbers:
            self.wishes[number].heirs.append(rescuer)
        rescuer.exchange.dial(BROKER_DOOR)
        rescuer.wake()

    def _go_on(self, wish: Wish) -> list[Body]:
        """Cancel jobs that never end, and use closed nodes again, as their user would have done."""
        number = wish.opening.cluster
        endless = [seq for seq, course in wish.courses.items() if course.run_s >= HANG_S]
        wish.cancelled.update(endless)
        orders: list[Body] = [CancelJobs(number, endless)]
        if wish.closed_some:
            orders.append(NodeRequest(number, 1, ALLOCATE, nodes=wish.opening.nodes))
        return orders

    def _on_rescued(self, client: ClientProcess, force: bool, rescuer: Rescuer) -> None:
        """Whoever got something waits for the rest another time."""
        self.note(f"{rescuer.identity.instance} is done, with all of {rescuer.completed}")
        self.rescuers.remove(rescuer)
        after = self.chance.choice([0.1, 1.0, 5.0])
        patience_s = self.chance.choice([1.0, 10.0, 1000.0])
        self.clock.after(after, partial(self.rescue, client, force, patience_s))

    def kill_rescuer(self, rescuer: Rescuer) -> None:
        """Kill whoever takes something over; what it has not handed over is for the next one."""
        self.note(f"kill {rescuer.identity.instance}")
        rescuer.kill()
        rescuer.finish()

    def operate(self, action: str, machine: Machine) -> None:
        """Have an operator drain a node, or resume it."""
        live: list[ClientProcess | Rescuer] = [each for each in self.live_clients() if each.broker]
        live = live or [each for each in self.rescuers if each.broker]
        if not live:
            return
        if action == RESUME:
            self.drained.discard(machine.name)
            for request, (_, name) in list(self.operations.items()):
                if name == machine.name:
                    del self.operations[request]
        request = self._requests = self._requests + 1
        self.operations[request] = action, machine.name
        self.note(f"{action} {machine.name}")
        client = self.chance.choice(live)
        client.exchange.send(client.broker, Operate(request, action, machine.name))
        client.wake()

    def resume_all(self) -> None:
        """Have all nodes used again that somebody has drained."""
        if self.disk is not None:
            for machine in self.machines.values():
                self.operate(RESUME, machine)

    def _on_report(self, report: Report) -> None:
        action, name = self.operations.pop(report.request, ("", ""))
        self.note(f"{action} {name}: {report.error or report.text}")
        if action == DRAIN and not report.error:
            self.drained.add(name)

    # -- nodes -----------------------------------------------------------------------------

    def add_machine(self, cpus: int, dials: bool, outpost: Outpost | None = None) -> Machine:
        """Put up a machine, maybe behind a relay; no node runs there yet."""
        number = len(self.machines) + 1
        address = f"10.0.1.{number}:9701"
        machine = Machine(f"node{number}", address, cpus, dials, outpost=outpost)
        if outpost is not None and not dials:
            outpost.below.append(address)
        self.machines[machine.name] = machine
        return machine

    def start_node(self, machine: Machine) -> None:
        """Start a node; one that lives goes on."""
        if machine.node is not None:
            return
        machine.lives += 1
        life = f"{machine.name}.{machine.lives}"
        self.note(f"start {life}")
        self.network.silent.discard(machine.address)
        socket = Socket(self.network, machine.name, machine.address)
        who = identity("node", life, machine.name, machine.cpus, machine.address)
        node = machine.node = NodeProcess(self.clock, socket, who)
        chance = random.Random(self.chance.random())
        node.jobs = Jobs(self.clock, chance, life, self.diary, self._course_of, node.wake)
        node.jobs.setup_fails = machine.setup_fails
        node.jobs.setup_hangs = machine.setup_hangs
        if machine.dials:
            outpost = machine.outpost
            node.exchange.dial(BROKER_DOOR if outpost is None else outpost.address)
        node.wake()

    def add_outpost(self, dials: bool, above: Outpost | None = None) -> Outpost:
        """Put up a place for a relay, maybe behind another one; none runs there yet.

        One that is behind another and doesn't dial it is dialled by it.
        """
        number = len(self.outposts) + 1
        door = BROKER_DOOR if above is None else above.address
        outpost = Outpost(f"relay{number}", f"10.0.2.{number}:9700", door, dials, comes=dials)
        if above is not None:
            outpost.comes = above.comes
        if above is not None and not dials:
            above.below.append(outpost.address)
        self.outposts[outpost.name] = outpost
        return outpost

    def start_relay(self, outpost: Outpost) -> None:
        """Start a relay; one that lives goes on."""
        if outpost.relay is not None:
            return
        outpost.lives += 1
        life = f"{outpost.name}.{outpost.lives}"
        self.note(f"start {life}")
        self.network.silent.discard(outpost.address)
        socket = Socket(self.network, outpost.name, outpost.address)
        relay = RelayProcess(self.clock, socket, identity("relay", life, outpost.name))
        outpost.relay = relay
        if outpost.dials:
            relay.relay.dial_up(outpost.above)
        for address in outpost.below:
            relay.relay.dial_down(address)
        relay.wake()

    def end_relay(self, outpost: Outpost, is_stopped: bool, is_machine_lost: bool = False) -> None:
        """Stop a relay, or kill it."""
        relay, outpost.relay = outpost.relay, None
        if relay is None:
            return
        self.lost_nodes = True
        self.note(f"end {relay.identity.instance}, stopped: {is_stopped}, lost: {is_machine_lost}")
        if is_stopped:
            relay.stop()
            return
        if is_machine_lost:
            self.network.silent.add(outpost.address)
        relay.kill(is_machine_lost)

    def live_relays(self) -> list[RelayProcess]:
        """Return the relays that run."""
        return [each.relay for each in self.outposts.values() if each.relay is not None]

    def kill_node(self, machine: Machine, is_machine_lost: bool = False) -> None:
        """Kill -9, or a loss of power, after which nobody is told anything."""
        node, machine.node = machine.node, None
        if node is not None:
            self.note(f"kill {node.identity.instance}, machine lost: {is_machine_lost}")
            self.lost_nodes = True
            if is_machine_lost:
                self.network.silent.add(machine.address)
            node.kill(is_machine_lost)

    def stop_node(self, machine: Machine) -> None:
        """Stop a node orderly."""
        node, machine.node = machine.node, None
        if node is not None:
            self.note(f"stop {node.identity.instance}")
            self.lost_nodes = True
            node.stop()

    def live_nodes(self) -> list[NodeProcess]:
        """Return the nodes that run."""
        return [each.node for each in self.machines.values() if each.node is not None]

    def _course_of(self, name: str, seq: int) -> Course:
        return self.wishes[int(name)].courses[seq]

    # -- the user --------------------------------------------------------------------------

    def open_cluster(
        self,
        reentrant: bool = False,
        max_tasks: int = 1,
        pulse_s: float = 1.0,
        grace_s: float = 1.0,
        nodes: list[NodeSpec] | None = None,
        files: list[FileSpec] | None = None,
        asks: bool = False,
        setup_timeout_s: float = 0.0,
        client: ClientProcess | None = None,
        exclusive: bool = False,
        label: str = "",
        weight: float = 1.0,
    ) -> int:
        """Open a cluster on the given nodes, or on all machines there are."""
        number = len(self.wishes) + 1
        specs = nodes or [*self._relay_specs(), *[each.spec for each in self.machines.values()]]
        computation = ComputationSpec(
            str(number),
            [layer(1)],
            files or [],
            max_tasks_per_child=max_tasks,
            cancel_grace=grace_s,
            pulse_interval=pulse_s,
            setup_timeout=setup_timeout_s,
        )
        opening = OpenCluster(number, computation, specs, reentrant, asks)
        opening.exclusive, opening.label, opening.weight = exclusive, label, weight
        client = client or self.client
        self.wishes[number] = Wish(opening, client)
        self.note(f"open {number}, reentrant: {reentrant}, max_tasks: {max_tasks}, asks: {asks}")
        client.open(opening)
        return number

    def _relay_specs(self) -> list[NodeSpec]:
        """Return what a cluster says to have relays dialled that wait for it."""
        waiting = [
            each for each in self.outposts.values() if each.above == BROKER_DOOR and not each.dials
        ]
        hosts = [each.address.rpartition(":") for each in waiting]
        return [NodeSpec(host, int(port)) for host, _, port in hosts]

    def submit(self, number: int, courses: list[Course], large: Large | None = None) -> None:
        """Submit jobs that will go this way; the first of them with a large payload."""
        wish, jobs = self.wishes[number], []
        if wish.is_closing or wish.is_taken or not courses:
            return
        self.note(f"submit {len(courses)} to {number}")
        for course in courses:
            seq = len(wish.courses) + 1
            if wish.layers > 1:
                course = replace(course, layers=wish.layers)
            wish.courses[seq] = course
            spec = JobSpec(seq, 0, b"" if large else argument(number, seq))
            if course.options is not None:
                spec.options = msgspec.structs.replace(course.options)
            if large is not None:
                spec.parts, large = [large], None
            jobs.append(DispyJob(number, spec, seq, (), {}))
        wish.client.submit(jobs)

    def define(self, number: int) -> None:
        """Define something that all later jobs need."""
        wish = self.wishes[number]
        if not wish.is_closing and not wish.is_taken:
            wish.layers += 1
            self.note(f"define layer {wish.layers} of {number}")
            wish.client.define(number, [layer(wish.layers)])

    def follow(self, number: int, seq: int) -> None:
        """Follow what a job prints."""
        self.note(f"follow {number}/{seq}")
        self.wishes[number].client.follow(number, seq)

    def request(self, number: int, action: str, node: int = 0, **more: Any) -> None:
        """Do something about nodes."""
        wish = self.wishes[number]
        if wish.is_closing or wish.is_taken:
            return
        self.note(f"{action} node {node} of {number}: {more}")
        wish.closed_some |= action in (CLOSE, DEALLOCATE, RESETUP)
        wish.ended_some |= bool(more.get("terminate"))
        if action in (ALLOCATE, RESETUP):
            wish.sent_away.clear()
        request = partial(NodeRequest, number, action=action, node=node, **more)
        wish.client.ask(number, lambda asked: request(request=asked))

    def send_file(self, number: int, node: int, file: FileSpec) -> None:
        """Put a file into the folder of a computation."""
        self.note(f"send {file.path} to node {node} of {number}")
        client = self.wishes[number].client
        client.ask(number, lambda asked: SendFile(number, asked, node, file))

    def allocate_all(self) -> None:
        """Have all nodes used again that users have sent away."""
        for number, wish in self.wishes.items():
            if wish.opening.asks or wish.closed_some:
                self.request(number, ALLOCATE, nodes=wish.opening.nodes)

    def close_stuck(self) -> None:
        """Close clusters with a job that was abandoned, but never ends: nothing else ends it.

        Its node goes on with it as long as it may return, and others wait behind it.
        """
        for number, wish in self.wishes.items():
            for seq, ends in wish.record.ends.items():
                course = wish.courses[seq]
                limited = course.options is not None and course.options.timeout
                if ends[-1].status == ABANDONED and course.run_s >= HANG_S and not limited:
                    self.close_cluster(number)
                    break

    def life_of(self, node: int) -> str:
        """Return the life of the node that the broker knows by a number."""
        nodes = self.broker.scheduler.nodes
        return next((peer for peer, each in nodes.items() if each.id == node), "")

    def _cpus_of_offer(self, number: int, node: NodeInfo) -> int:
        if not self.wishes[number].offers_wanted and self.chance.random() < 0.5:
            return 0
        return self.chance.randint(1, node.cpus)

    def _on_answer(self, number: int, request: int, code: int) -> None:
        """A node that was closed isn't used again before somebody asks for it."""
        record = self.wishes[number].record
        asked = record.asked[request]
        if isinstance(asked, NodeRequest) and asked.action == CLOSE and code == 0:
            last = max(
                other
                for other, each in record.asked.items()
                if isinstance(each, NodeRequest) and each.action in (CLOSE, ALLOCATE, RESETUP)
            )
            if last == request:
                self.wishes[number].sent_away.add(self.life_of(asked.node))

    def _on_node(self, number: int, node: int) -> None:
        life = self.life_of(node)
        assert not life or life not in self.wishes[number].sent_away, "a closed node is used"

    def cancel(self, number: int, seq: int) -> None:
        """Cancel a job."""
        self.note(f"cancel {number}/{seq}")
        wish = self.wishes[number]
        if not wish.is_taken:
            wish.cancelled.add(seq)
            wish.client.cancel(number, seq)

    def close_cluster(self, number: int) -> None:
        """Close a cluster, with all jobs that are left."""
        wish = self.wishes[number]
        if not wish.is_closing and not wish.is_taken:
            self.note(f"close {number}")
            wish.is_closing = True
            wish.client.close(number)

    def close_all(self) -> None:
        """Close every cluster."""
        for number, wish in self.wishes.items():
            self.close_cluster(number)
            if wish.is_taken and wish.client.socket.alive and not wish.record.is_closed:
                wish.client.close(number)  # it was opened anew, see `Disk.reopened`

    # -- time ------------------------------------------------------------------------------

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; stop early, and return True, once ``done`` says so."""
        return self.clock.run(self.now + seconds, done)

    def is_idle(self) -> bool:
        """Whether every job has ended for the client."""
        if self.rescuers:
            return False
        return all(is_settled(wish) for wish in self.wishes.values())

    def close_done(self) -> None:
        """Close the clusters whose users were waiting for their jobs only."""
        for number, wish in self.wishes.items():
            if wish.closes and not wish.is_taken and is_settled(wish):
                self.close_cluster(number)

    def is_closed(self) -> bool:
        """Whether every cluster is closed for its client, and no node has any of it left."""
        wishes = self.wishes.values()
        closed = all(wish.record.is_closed for wish in wishes if not wish.is_taken)
        return closed and not any(node.agent.computations for node in self.told_nodes())

    def told_nodes(self) -> list[NodeProcess]:
        """Return the live nodes but those that the broker has given up and needn't dial again.

        Such a node keeps what it has until it is found by another broker, or for `KEEP_S`.
        """
        registered = self.broker.scheduler.nodes
        return [
            machine.node
            for machine in self.machines.values()
            if machine.node is not None
            and (machine.comes or machine.node.identity.instance in registered)
        ]

    def processes(self) -> list[Process]:
        """Return all that live."""
        return [self.broker, *self.live_clients(), *self.live_nodes(), *self.live_relays()]

    def live_clients(self) -> list[ClientProcess]:
        """Return the clients that run."""
        return [client for client in self.clients if client.socket.alive]


def is_settled(wish: Wish) -> bool:
    """Whether all jobs of a cluster have ended for whoever has it."""
    if not wish.is_taken:
        return len(wish.record.ends) == wish.record.submitted
    number = wish.opening.cluster
    over = [number in heir.completed | heir.unknown for heir in wish.heirs]
    return wish.is_orphan or any(over)


def identity(role: str, instance: str, name: str = "", cpus: int = 0, door: str = "") -> Identity:
    """Say who a process is."""
    place = f"{name}/{door}" if door else ""
    return Identity(role, instance, name or role, SOFTWARE, "3", "made up", cpus, place, door)


def argument(number: int, seq: int) -> bytes:
    """Return what a job is called with."""
    return b"%d/%d" % (number, seq)


def layer(number: int) -> Code:
    """Return the code of one layer, counted from 1."""
    return Code("3", JobSpec(0, 0, b"%d" % number))
