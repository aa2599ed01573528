"""What ``dispy doctor`` makes of what was found: remarks, and what to do.

Pure: `probing` and `surroundings` find out, this judges. A remark with an advice asks the user to
do something; every advice is a sentence that says what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

OK = "ok"
NOTE = "note"  # worth knowing; all may be well
PROBLEM = "problem"

# How a TCP connection went.
OPEN = "open"
REFUSED = "refused"
SILENT = "silent"
FAILED = "failed"

# What who listens there protects connections with.
SECRET = "CURVE"
PLAIN = "NULL"
NOT_OURS = ""  # it isn't ZeroMQ

DIFFERS = "differs"  # a refusal: the secrets do

PORTS = (9700, 9701, 9702)
DOORS = {9700: "a broker or relay, for nodes", 9701: "a node or relay", 9702: "a broker, for users"}
CLOCK_S = 2.0  # a difference from which on times of jobs look odd
SLOW_S = 0.2  # a round trip that makes short jobs wait
FILES_MIN = 1024
SHM_MIN = 64 << 20
TMP_MIN = 1 << 30
MIB = 1 << 20
LIBZMQ_MIN = "4.3.3"


@dataclass(frozen=True)
class Answer:
    """What a peer has said of itself."""

    role: str
    name: str
    software: str
    python: str = ""
    platform: str = ""
    cpus: int = 0
    engaged: str = ""  # what it is busy with, in its own words
    round_trip_s: float = 0.0
    clock_s: float | None = None  # how far its clock is ahead of ours


@dataclass(frozen=True)
class Contact:
    """What came of trying one address."""

    address: str  # "host:port"
    outcome: str  # OPEN, REFUSED, SILENT or FAILED
    detail: str = ""  # in the system's words
    protection: str = NOT_OURS
    answer: Answer | None = None
    refusal: str = ""  # why there is no answer, though it was asked
    asked: bool = False  # it was asked who it is

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Remark:
    """Something that was found out; ``advice`` says what to do about it, if anything."""

    level: str
    about: str
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Target:
    """What is tried."""

    host: str  # as the user calls it
    is_here: bool = False  # it means this machine
    is_exact: bool = False  # the user has named the port
    is_wanted: bool = True  # something should be there


@dataclass(frozen=True)
class Means:
    """What this machine has to reach others with."""

    has_secret: bool
    secret_source: str = ""
    insecure: bool = False
    software: str = ""


@dataclass(frozen=True)
class Interface:
    """An address of this machine. ``why_not``: why nobody is found through it; empty: they are."""

    name: str
    address: str
    why_not: str = ""


@dataclass(frozen=True)
class Machine:
    """What was found out about this machine, without asking anybody."""

    name: str
    versions: dict[str, str]
    means: Means
    secret_error: str = ""
    secret_warning: str = ""
    folder_error: str = ""  # who else may put a secret in its place
    interfaces: Sequence[Interface] = ()
    announced: Sequence[str] = ()  # what others would be told to dial
    listening: dict[int, list[str]] = field(default_factory=dict)  # port -> hosts
    cpus: int = 1
    usable_cpus: int = 1
    files_soft: int = 0  # limits of open files; 0: unknown
    files_hard: int = 0
    shm_bytes: int | None = None  # free; None: there is none
    tmp: str = ""
    tmp_bytes: int | None = None  # free; None: it can't be written


def has_problem(remarks: Iterable[Remark]) -> bool:
    """Whether anything is wrong."""
    return any(remark.level == PROBLEM for remark in remarks)


def advices(remarks: Iterable[Remark]) -> list[str]:
    """Return what to do, the most urgent first, each once."""
    ordered = sorted(remarks, key=lambda remark: remark.level != PROBLEM)
    return list(dict.fromkeys(remark.advice for remark in ordered if remark.advice))


# -- this machine -------------------------------------------------------------------------------


def judge_machine(machine: Machine) -> list[Remark]:
    """Say how this machine is."""
    return [
        *_versions(machine),
        *_secret(machine),
        *_limits(machine),
        *_network(machine),
        *_doors(machine),
    ]


def _versions(machine: Machine) -> list[Remark]:
    said = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    found = [Remark(OK, "versions", said)]
    libzmq = machine.versions.get("libzmq", LIBZMQ_MIN)
    if _number(libzmq) < _number(LIBZMQ_MIN):
        advice = "Upgrade pyzmq: pip install --upgrade pyzmq"
        found.append(Remark(PROBLEM, "versions", f"libzmq {libzmq} has known holes", advice))
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _secret(machine: Machine) -> list[Remark]:
    found = []
    means = machine.means
    if machine.secret_error:
        found.append(secret_error(machine.secret_error))
    elif means.insecure:
        text = "none is used (--insecure): whoever reaches a process runs programs as its user"
        found.append(Remark(NOTE, "secret", text))
    elif means.has_secret:
        found.append(Remark(OK, "secret", f"found: {means.secret_source}"))
    else:
        text = "none is found: only processes on this machine can be reached, and reach us"
        advice = (
            "To use several machines, make a secret with 'dispy secret new', and copy it to all "
            "of them as it says."
        )
        found.append(Remark(NOTE, "secret", text, advice))
    if machine.secret_warning:
        advice = "Make a better secret: dispy secret new --force; then copy it to all machines."
        found.append(Remark(NOTE, "secret", machine.secret_warning, advice))
    if machine.folder_error:
        found.append(Remark(PROBLEM, "secret", machine.folder_error, "Take that right away."))
    return found


def secret_error(reason: str) -> Remark:
    """A secret is there, and can't be used."""
    advice = "Repair the secret as is said there, or make a new one: dispy secret new --force"
    return Remark(PROBLEM, "secret", reason, advice)


def _limits(machine: Machine) -> list[Remark]:
    found = [Remark(OK, "CPUs", _cpus(machine))]
    if machine.files_soft:
        text = f"limit of open files: {machine.files_soft} (hard: {machine.files_hard})"
        advice = f"Allow more open files: 'ulimit -n {FILES_MIN}', or LimitNOFILE= of systemd."
        few = machine.files_hard < FILES_MIN
        found.append(Remark(PROBLEM if few else OK, "limits", text, advice if few else ""))
    if machine.shm_bytes is not None:
        few = machine.shm_bytes < SHM_MIN
        text = f"{_size(machine.shm_bytes)} free in /dev/shm"
        advice = "Give the machine (or the container: --shm-size) more /dev/shm."
        found.append(Remark(NOTE if few else OK, "limits", text, advice if few else ""))
    if machine.tmp_bytes is None:
        text = f"{machine.tmp}, for the files of jobs, can't be written"
        advice = "Name another folder: --dest-path-prefix of dispy-node, or TMPDIR."
        found.append(Remark(PROBLEM, "limits", text, advice))
    else:
        few = machine.tmp_bytes < TMP_MIN
        text = f"{_size(machine.tmp_bytes)} free in {machine.tmp}, for the files of jobs"
        advice = f"Make room in {machine.tmp}, or name another folder: --dest-path-prefix."
        found.append(Remark(NOTE if few else OK, "limits", text, advice if few else ""))
    return found


def _cpus(machine: Machine) -> str:
    if machine.usable_cpus < machine.cpus:
        return f"{machine.usable_cpus} of {machine.cpus} may be used here"
    return str(machine.cpus)


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count // MIB} MiB"


def _network(machine: Machine) -> list[Remark]:
    found = []
    for interface in machine.interfaces:
        said = f"{interface.name} {interface.address}: "
        said += interface.why_not or "peers can be found through it"
        found.append(Remark(OK, "interface", said))
    told = ", ".join(machine.announced)
    if machine.means.has_secret or machine.means.insecure:
        found.append(Remark(OK, "addresses", f"others would be told to dial {told}"))
    return found


def _doors(machine: Machine) -> list[Remark]:
    """Say of doors that are open whether other machines get to them."""
    found = []
    for port, hosts in sorted(machine.listening.items()):
        said = f"port {port} is open at {', '.join(hosts)}"
        shut = all(host.startswith("127.") or host == "::1" for host in hosts)
        if shut and machine.means.has_secret:
            advice = (
                f"If others shall reach port {port}, start what listens there again, so that it "
                "finds the secret, and without --host 127.0.0.1."
            )
            said += ": other machines can't reach it"
            found.append(Remark(NOTE, "doors", said, advice))
        else:
            found.append(Remark(OK, "doors", said))
    return found


# -- whoever was tried ----------------------------------------------------------------------------


def judge_contacts(target: Target, contacts: Sequence[Contact], means: Means) -> list[Remark]:
    """Say what came of trying a host."""
    remarks = [_judge(target, contact, means) for contact in contacts]
    if any(each.answer is not None and each.answer.role == "broker" for each in contacts):
        remarks = list(map(_other_door, remarks, contacts))
    for contact in contacts:
        if contact.answer is not None:
            remarks += _details(contact.address, contact.answer, means)
    if not any(contact.answer for contact in contacts) and not has_problem(remarks):
        remarks.append(_nobody(target, contacts))
    return remarks


def _judge(target: Target, contact: Contact, means: Means) -> Remark:
    address = contact.address
    if contact.answer is not None:
        return _judge_answer(contact, contact.answer, means)
    if contact.outcome == OPEN:
        return _judge_open(target, contact, means)
    usually = "" if target.is_exact else _usually(contact)
    if contact.outcome == REFUSED:
        return Remark(NOTE, address, f"refused: nothing listens there{usually}")
    if contact.outcome == SILENT:
        return Remark(NOTE, address, f"no answer: {contact.detail}{usually}")
    return Remark(NOTE, address, f"{contact.detail}{usually}")


def _judge_answer(contact: Contact, answer: Answer, means: Means) -> Remark:
    who = _describe(answer)
    if contact.protection == PLAIN and means.has_secret:
        return _without_secret(contact.address, who, means)
    return Remark(OK, contact.address, who)


def _without_secret(address: str, who: str, means: Means) -> Remark:
    text = f"{who} uses no secret, and this machine does ({means.secret_source})"
    advice = f"Start what listens at {address} again, so that it finds the same secret."
    return Remark(PROBLEM, address, text, advice)


def _other_door(remark: Remark, contact: Contact) -> Remark:
    """A broker may have one secret for nodes and another one for users: ours fits one door."""
    if contact.refusal != DIFFERS:
        return remark
    text = "its secret is another one than ours: perhaps that of nodes, and ours is that of users"
    return Remark(NOTE, contact.address, text)


def _usually(contact: Contact) -> str:
    return f" (usually {DOORS[contact.port]})" if contact.port in DOORS else ""


def _describe(answer: Answer) -> str:
    said = f"{answer.role} {answer.name!r}, dispy {answer.software}"
    if answer.cpus:
        said += f", {answer.cpus} CPUs"
    if answer.python:
        said += f", Python {answer.python}"
    if answer.round_trip_s:
        said += f"; round trip {answer.round_trip_s * 1000:.1f} ms"
    if answer.clock_s is not None and abs(answer.clock_s) > CLOCK_S:
        said += f"; its clock is {_apart(answer.clock_s)}"
    return said


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} ours"


def _judge_open(target: Target, contact: Contact, means: Means) -> Remark:
    address, host = contact.address, target.host
    if contact.protection == NOT_OURS:
        text = f"something listens there that isn't dispy{_said(contact)}"
        advice = (
            f"Find out what listens at {address}, and give it or dispy another port (-p, --port)."
        )
        return Remark(PROBLEM if target.is_exact else NOTE, address, text, advice)
    if contact.protection == SECRET and not means.has_secret:
        text = "it asks for a secret, and there is none here"
        return Remark(PROBLEM, address, text, _bring(target))
    if contact.protection == SECRET:
        return _judge_protected(target, contact, means)
    if means.has_secret:
        return _without_secret(address, "it", means)
    if not contact.asked:
        text = "it uses no secret, nor does this machine: it isn't spoken to beyond loopback"
        advice = (
            f"Make a secret with 'dispy secret new', copy it to {host}, and start dispy there "
            "again; in a network that you trust, use --insecure on both sides."
        )
        return Remark(PROBLEM, address, text, advice)
    return _judge_refusal(target.host, contact)


def _said(contact: Contact) -> str:
    return f" ({contact.detail})" if contact.detail else ""


def _bring(target: Target) -> str:
    if target.is_here:
        return "Use one secret for all that runs here: 'dispy secret check' says which is found."
    return (
        f"Bring the secret of {target.host} here: scp {target.host}:.config/dispy/secret "
        "~/.config/dispy/secret; then chmod 600 ~/.config/dispy/secret"
    )


def _judge_protected(target: Target, contact: Contact, means: Means) -> Remark:
    if contact.refusal and contact.refusal != DIFFERS:
        return _judge_refusal(target.host, contact)
    text = f"its secret differs from ours ({means.secret_source})"
    return Remark(PROBLEM, contact.address, text, _bring(target))


def _judge_refusal(host: str, contact: Contact) -> Remark:
    """It was reached, and has refused or said nothing."""
    reason = contact.refusal or "it says nothing"
    text = f"it was reached, but: {reason}"
    advice = f"See what it logs at {host}, and start it again if it hangs."
    if "version" in reason:
        advice = f"Install the same release of dispy here and at {host}."
    return Remark(PROBLEM, contact.address, text, advice)


def _details(address: str, answer: Answer, means: Means) -> list[Remark]:
    found = []
    if answer.engaged:
        advice = ""
        if answer.role == "node" and "works for" in answer.engaged:
            advice = (
                f"To use node {answer.name!r} now, use the broker that it works for; or wait until "
                "that lets it go."
            )
        found.append(Remark(NOTE, address, answer.engaged, advice))
    if answer.clock_s is not None and abs(answer.clock_s) > CLOCK_S:
        text = f"its clock is {_apart(answer.clock_s)}"
        advice = "Set the clocks (NTP): times of jobs are told by the machine where they run."
        found.append(Remark(NOTE, address, text, advice))
    if answer.round_trip_s > SLOW_S:
        text = f"a round trip takes {answer.round_trip_s * 1000:.0f} ms"
        found.append(Remark(NOTE, address, text))
    if means.software and answer.software != means.software:
        text = f"it has dispy {answer.software}, this machine {means.software}"
        advice = "They understand each other; install the same release to have all of its features."
        found.append(Remark(NOTE, address, text, advice))
    return found


def _nobody(target: Target, contacts: Sequence[Contact]) -> Remark:
    """Nobody answers at any address, and no address says why."""
    host = target.host
    outcomes = {contact.outcome for contact in contacts}
    ports = ", ".join(str(port) for port in sorted({contact.port for contact in contacts}))
    if not target.is_wanted:
        text = f"nothing of dispy listens at this machine (ports {ports})"
        return Remark(NOTE, host, text)
    if REFUSED in outcomes:
        text = "the machine is there, but nothing of dispy listens"
        advice = (
            f"Start dispy-node (or dispy-broker) at {host}. If it runs there, run 'dispy doctor' "
            "there: without a secret it listens for its own machine only."
        )
        return Remark(PROBLEM, host, text, advice)
    if SILENT in outcomes:
        text = "nothing comes back: the machine is off, or a firewall drops what we send"
        advice = (
            f"Let TCP through to {host}, port {ports}. Where that can't be, have {host} dial this "
            "machine (dispy-node --broker), use an ssh tunnel, or a relay between them."
        )
        return Remark(PROBLEM, host, text, advice)
    text = "no way leads there"
    advice = f"See to it that this machine has a route to {host}; is it connected to a network?"
    return Remark(PROBLEM, host, text, advice)


def judge_found(found: dict[str, list[Contact]], means: Means) -> list[Remark]:
    """Say who was found in the network, and whether they can be reached."""
    if not found:
        return [Remark(NOTE, "discovery", "nobody with our secret has answered")]
    remarks = []
    for contacts in found.values():
        reached = next((each for each in contacts if each.answer is not None), None)
        if reached is not None and reached.answer is not None:
            remarks.append(Remark(OK, reached.address, _describe(reached.answer)))
            remarks += _details(reached.address, reached.answer, means)
            continue
        how = "; ".join(f"{each.address}: {each.detail or each.outcome}" for each in contacts)
        advice = (
            "Let TCP through to the peers that were found, or have them dial this machine: "
            "UDP gets there, and TCP doesn't."
        )
        remarks.append(Remark(PROBLEM, "discovery", f"found, but not reached: {how}", advice))
    return remarks


def unknown_host(host: str, reason: str) -> Remark:
    """The name of a host stands for no address."""
    advice = f"Check how {host!r} is spelled, or use an address such as 192.168.1.5 instead."
    return Remark(PROBLEM, host, f"the name can't be found: {reason}", advice)
