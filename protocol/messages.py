"""All messages of the protocol: plain typed values, with no behaviour and no I/O.

A header frame holds one `Frame`: a handshake message or an `Envelope` with many messages.
Fields may be appended, with a default, in a minor version; anything else is a new major one.
Every message that concerns jobs is a batch, so that no work is done per job that can be
done per batch.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

VERSION_MAJOR = 1  # peers of another major version are refused
VERSION_MINOR = 0  # the lower of two minor versions is spoken

# Final states of a job; the numbers are those of DispyJob.
CANCELLED = 8
TERMINATED = 9
ABANDONED = 10
FINISHED = 11

# What a running job says: see `payload`.
PROVISIONAL = 1  # a provisional result
FILE = 2  # a piece of a file
OUTPUT = 3  # what it has printed

RECORDS_AHEAD = 8  # records of one attempt that have not been heard
PIECE_BYTES = 1 << 20  # of a blob
ADDRESSES_MAX = 64  # that a peer may say that it has
RECORD_BYTES = 1 << 18  # of a file or of output in one record

# A broker's numbers of clusters begin at a multiple of this; people say only what is beyond.
SERIALS = 1 << 16

# What a client asks about nodes.
ALLOCATE = "allocate"
DISCOVER = "discover"
DEALLOCATE = "deallocate"
CLOSE = "close"
RESETUP = "resetup"
SET_CPUS = "cpus"

# What people ask of a broker.
STATUS = "status"
DRAIN = "drain"
RESUME = "resume"
CANCEL = "cancel"
WHY = "why"

# What `Relayed` tells of a peer behind a relay.
CARRIED = 0  # what it says, or what is said to it: frames follow
INTRODUCED = 1  # the relay has dialled it: say Hello
LOST = 2  # its connection is gone
DROPPED = 3  # to the relay: close its connection; `refused`: and take some time before the next
MARK = 4  # no peer: answer MARKED with the same number, to tell how much has arrived
MARKED = 5

DOCTOR = "doctor"  # a role that only asks who is there: it is told so by `Refused`

Buffer: TypeAlias = "bytes | bytearray | memoryview"

# What is kept of peers by the thousand: names, addresses, reasons.
Short: TypeAlias = Annotated[str, msgspec.Meta(max_length=1000)]


class Large:
    """A payload that travels beside its header: a size in the header, chunks in frames.

    ``chunks`` are buffers of at most ``wire.CHUNK_BYTES`` each; between decoding a header
    and the arrival of its frames they are still missing and the list is empty.
    """

    __slots__ = ("chunks", "size")

    def __init__(self, size: int, chunks: list[Buffer]) -> None:
        self.size = size
        self.chunks = chunks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large) and self.tobytes() == other.tobytes()

    __hash__ = None  # type: ignore[assignment]

    def tobytes(self) -> bytes:
        """Join the chunks (a copy, unless there is just one `bytes`)."""
        if len(self.chunks) == 1 and isinstance(self.chunks[0], bytes):
            return self.chunks[0]
        return b"".join(self.chunks)


class Struct(msgspec.Struct, array_like=True, gc=False):
    """Base of the values inside messages that change on their way."""


class Frozen(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Base of the values inside messages that never change."""


class Identity(Frozen, frozen=True):
    """Who a peer is; it comes with the handshake and never changes while the peer lives."""

    role: Short  # "client", "node", "broker" or "relay"
    instance: Short  # random, new at each start of the process
    name: Short  # for people: a host name, or what --name says
    software: Short  # version of this project
    python: Short  # "3.11.7"
    platform: Short  # as platform.platform() tells
    cpus: int = 0  # nodes: job processes at a time
    place: Short = ""  # nodes: machine and port; a new instance at a place proves the old one gone
    address: Short = ""  # nodes: the address of their own door, "host:port"
    user: Short = ""  # clients: who runs the program, "login@host"; shares are counted by user
    # All addresses of its own door, "host:port", the best one first.
    addresses: Annotated[list[Short], msgspec.Meta(max_length=ADDRESSES_MAX)] = []


class FileSpec(Frozen, frozen=True):
    """A file that a computation or a job needs. Its content is a blob: see `blobs`."""

    path: str  # where it goes, below the folder of the computation; parts joined by "/"
    digest: bytes  # names the content
    size: int
    mode: int = 0o644  # permission bits
    mtime: float = 0.0  # seconds since the epoch


class JobOptions(Struct):
    """What only few jobs ask for."""

    priority: int = 0  # jobs of a higher one go first
    timeout: float = 0.0  # seconds that an attempt may run; 0: no limit
    retries: int = 0  # attempts that may fail before the job counts as failed
    node: int = 0  # id of the only node that may run it; 0: any
    follow: bool = False  # its output is to be told while it runs
    files: list[FileSpec] = []  # in a folder of the job's own, removed after it


class JobSpec(Struct):
    """One job on its way to a job process.

    ``payload`` is opaque to all but the job process. When it is empty, the first of
    ``parts`` is the payload, and the others are its out-of-band buffers.
    """

    seq: int  # unique in its cluster
    attempt: int  # 0 from a client; the broker counts from 1
    payload: bytes
    parts: list[Large] = []
    options: JobOptions | None = None


class Code(Struct):
    """One layer of a computation's code: see `payload`.

    Bytecode is of one version of Python; ``source`` with ``by_name`` is the same for others.
    """

    python: str  # "3.11": what the bytecode is for
    pickled: JobSpec  # its payload: the layer; seq and attempt are 0
    source: str = ""  # definitions to execute instead; empty: there is no such form
    by_name: bytes = b""  # the layer again, pickled by reference to what ``source`` defines


class ComputationSpec(Struct):
    """What a node needs to know of a cluster to run its jobs."""

    name: str
    layers: list[Code]  # the first has the functions; later ones define what arguments need
    files: list[FileSpec] = []
    program: str = ""  # path below the computation's folder; empty: layers[0] has a function
    dest_path: str = ""  # folder to use, below the node's own; empty: a new one
    cleanup: bool = True  # remove the files at the end
    max_tasks_per_child: int = 1  # 0: no limit
    cancel_grace: float = 5.0  # seconds from SIGINT to SIGTERM
    pulse_interval: float = 5.0  # seconds
    setup_timeout: float = 0.0  # seconds that setup may take; 0: no limit


class Vitals(Frozen, frozen=True):
    """What a node has to spare."""

    cpu: float  # percent; 100: idle
    memory: int  # bytes
    disk: int  # bytes, where the files of computations are
    swap: float  # percent; 100: all of it is free


class JobRecord(Struct):
    """What a running job has to say. Records of an attempt are numbered from 1, in order.

    At most `RECORDS_AHEAD` of them are on the way without having been heard.
    """

    seq: int
    attempt: int
    number: int
    kind: int  # PROVISIONAL, FILE or OUTPUT
    payload: bytes
    parts: list[Large] = []


class Heard(Frozen, frozen=True):
    """The client has dealt with all records of an attempt up to this number."""

    seq: int
    attempt: int
    number: int
    error: str = ""  # why the file that ended with this record was refused


class BlobRange(Frozen, frozen=True):
    """A piece of a blob."""

    digest: bytes
    offset: int
    size: int  # at most `PIECE_BYTES`


class BlobPiece(Struct):
    """The bytes of such a piece: ``data``, or ``parts[0]`` when they are many."""

    digest: bytes
    offset: int
    data: bytes
    parts: list[Large] = []
    error: str = ""  # why there are none


class JobResult(Struct):
    """How one attempt of a job ended. Times are seconds since the epoch, at the node."""

    seq: int
    attempt: int
    status: int  # CANCELLED, TERMINATED, ABANDONED or FINISHED
    start: float
    end: float
    payload: bytes
    parts: list[Large] = []


class NodeSpec(Frozen, frozen=True):
    """One entry of ``nodes=``: where to find a node, and how much of it to use."""

    pattern: str  # IP address, host name, or wildcard over addresses
    port: int = 0  # 0: a pattern only, nothing to dial
    cpus: int = 0  # 0: all; negative: all but so many
    files: list[FileSpec] = []  # for this node only, beside those of the computation
    setup_args: JobSpec | None = None  # its payload: the pickled arguments of setup and cleanup


class NodeInfo(Frozen, frozen=True):
    """A node as a client sees it."""

    id: int  # of this broker
    address: str
    name: str
    cpus: int
    platform: str
    addresses: list[str] = []  # all by which it may be meant: `address`, then what it says itself
    relay: str = ""  # the address of the relay in between, if it was dialled


class NodeReport(Frozen, frozen=True):
    """A node as operators see it."""

    id: int
    name: str
    address: str
    cpus: int
    state: str  # "up", "away", "drained", "set aside", "out of service" or "stopping"
    reason: str  # why it isn't "up"
    running: int  # jobs there that have begun or may have
    held: int  # jobs there in all
    done: int  # jobs that have ended there
    clusters: list[int]  # the broker's numbers
    since: float  # seconds since the epoch
    platform: str
    software: str
    vitals: Vitals | None = None
    via: str = ""  # the name of the relay that it is behind


class ClusterReport(Frozen, frozen=True):
    """A cluster as operators see it."""

    id: int  # the broker's number
    label: str
    user: str
    state: str  # "open", "waiting" (for an exclusive one), "away" (its client) or "closing"
    exclusive: bool
    weight: float
    waiting: int  # jobs
    running: int
    ended: int
    unheard: int  # ended, and the client hasn't got their results
    cpus: int  # of the nodes that take its jobs
    used_s: float  # CPU time that its jobs have had
    share: float  # part of the CPUs that it is entitled to now, 0 to 1
    rate: float  # jobs that end per second, of late
    since: float  # seconds since the epoch


class BrokerReport(Frozen, frozen=True):
    """A broker as operators see it."""

    name: str
    software: str
    policy: str
    since: float  # seconds since the epoch
    journal: str  # its folder; empty: none
    journal_bytes: int
    trouble: str  # why no jobs are accepted at present; empty: they are
    clients: int
    rate: float  # jobs that end per second, of late
    nodes: list[NodeReport]
    clusters: list[ClusterReport]


# -- handshake: one of these is the first thing said on a connection ---------------------


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all that can be sent."""


class Hello(Message, tag=1):
    """The dialling side says who it is, and which session it would like to continue."""

    major: int
    minor: int
    identity: Identity
    session: str = ""  # empty: a new one
    received: int = 0  # envelopes of that session that have arrived here
    token: bytes = b""  # proves that ``identity.instance`` is the sender's: see `guard`
    proof: bytes = b""  # ... that it knows the secret, and may have its role
    relayed: bool = False  # there is a relay in between: both keep to the limits for that


class Welcome(Message, tag=2):
    """The listening side agrees. Another ``session`` than asked for: the old one is over."""

    minor: int
    identity: Identity
    session: str
    epoch: int  # how many connections this session has had
    received: int = 0
    token: bytes = b""  # as in `Hello`
    relayed: bool = False  # as in `Hello`


class Refused(Message, tag=3):
    """The listening side doesn't agree; ``reason`` is written for the user.

    To a DOCTOR it says who it is, and as the reason what it is busy with, if anything.
    """

    reason: str
    identity: Identity | None = None
    time: float = 0.0  # its clock, in seconds since the epoch; 0: it doesn't tell


class Unknown(Message, tag=4):
    """The receiver's connection is not registered here (any more): say Hello again."""


class Goodbye(Message, tag=5):
    """The sender ends the session on purpose; nothing more will come, nothing is kept."""

    reason: str = ""


class Relayed(Message, tag=7):
    """What follows is from or for a peer behind a relay: its own header frame and payloads.

    It goes between a relay and the side that it brings its peers to. Relays in a row put one
    before the other.
    """

    child: int  # the relay's number for its connection to that peer; never used again
    event: int = CARRIED
    text: Short = ""  # INTRODUCED: the peer's address; LOST: why
    refused: bool = False  # LOST: nothing listens there, so the peer's process is gone


class Cached(Message, tag=8):
    """Frames of the message that follows which its receiver has had before, so they're missing."""

    frames: list[tuple[int, bytes]]  # position among the frames that follow, and its digest


class Nudge(Message, tag=9):
    """No meaning: a relay says it to peers that dialled, to notice which of them are gone."""


# -- client to broker ---------------------------------------------------------------------


class OpenCluster(Message, tag=10):
    """A new computation. Answered by `ClusterOpened`."""

    cluster: int  # chosen by the client, unique for the client
    computation: ComputationSpec
    nodes: list[NodeSpec]
    reentrant: bool = False
    asks: bool = False  # each node that is found is offered: `NodeOffer`, `Allocate`
    label: str = ""  # what people call the cluster; empty: the name of the computation
    exclusive: bool = False  # wait until all others are closed, then own all nodes
    weight: float = 1.0  # its part of its user's share, beside the user's other clusters


class Submit(Message, tag=11):
    """Jobs to run. Sent again after a new session; known jobs are not taken twice."""

    cluster: int
    jobs: list[JobSpec]


class CancelJobs(Message, tag=12):
    """End these jobs; each still ends with a result."""

    cluster: int
    jobs: list[int]


class CloseCluster(Message, tag=13):
    """No more jobs; cancel those that are left, clean the nodes up, then `ClusterClosed`."""

    cluster: int


class FollowJobs(Message, tag=14):
    """Tell what these jobs print while they run, from now on."""

    cluster: int
    jobs: list[int]


class NodeRequest(Message, tag=15):
    """Do something about nodes: ``action`` is ALLOCATE or one of its like. See `Answer`."""

    cluster: int
    request: int  # chosen by the client
    action: str
    node: int = 0  # its id; for ALLOCATE, 0: those in ``nodes``
    nodes: list[NodeSpec] = []  # for ALLOCATE and DISCOVER
    cpus: int = 0  # for SET_CPUS; negative: all but so many
    terminate: bool = False  # for CLOSE and RESETUP: don't wait for jobs
    asks: bool = False  # for ALLOCATE: from now on, nodes are offered as `OpenCluster` says


class Allocate(Message, tag=16):
    """Use so many CPUs of a node that was offered (0: don't use it)."""

    cluster: int
    node: int
    cpus: int
    files: list[FileSpec] = []
    setup_args: JobSpec | None = None


class SendFile(Message, tag=17):
    """Put a file into the folder of the computation at one node. See `Answer`."""

    cluster: int
    request: int
    node: int
    file: FileSpec


class ResultsHeard(Message, tag=19):
    """The client has dealt with these `Results`; a broker with a journal keeps them until then."""

    cluster: int
    records: list[int]  # their ``record``


class Attach(Message, tag=70):
    """Take a cluster over whose client is away or dead. Answered by `Attached`, `ClusterLost`.

    It is named by ``owner`` and ``number``, as a recover file knows it, or else by ``label``.
    """

    cluster: int  # what this client calls it from now on
    label: str = ""  # its label, or the broker's number of it
    owner: str = ""  # instance of the client that opened it
    number: int = 0  # what that client called it
    force: bool = False  # even if its client is there: that one gets a `ClusterLost`


class Operate(Message, tag=71):
    """What people ask of a broker as a whole. Answered by `Report`; no cluster is needed."""

    request: int  # chosen by the client
    action: str  # STATUS or one of its like
    target: str = ""  # DRAIN, RESUME: a node; CANCEL: a cluster; WHY: a cluster
    jobs: list[int] = []  # CANCEL, WHY: these; none: all of the cluster, and close it
    reason: str = ""  # DRAIN: shown to those who ask


class Explain(Message, tag=18):
    """Why hasn't this job ended? The text of the `Answer` says it."""

    cluster: int
    request: int
    job: int


# -- the whole way between client and node: ``cluster`` is the client's number for it on one
# -- side of the broker, the broker's number of the computation on the other -----------------


class Define(Message, tag=30):
    """Client to node: layers of code that later jobs need."""

    cluster: int
    layers: list[Code]


class Records(Message, tag=31):
    """Node to client: what running jobs have to say."""

    cluster: int
    records: list[JobRecord]
    node: int = 0  # its id, from the broker on


class RecordsHeard(Message, tag=32):
    """Client to node: the answer to `Records`."""

    cluster: int
    jobs: list[Heard]


class NeedBlobs(Message, tag=33):
    """Node to client: send these. The broker holds requests back while much is on its way."""

    cluster: int
    node: int  # its id, from the broker on
    ranges: list[BlobRange]
    done: int = 0  # pieces that the node has had by now, in all


class BlobPieces(Message, tag=34):
    """Client to node: the answer to `NeedBlobs`."""

    cluster: int
    node: int
    pieces: list[BlobPiece]


# -- broker to client ---------------------------------------------------------------------


class ClusterOpened(Message, tag=20):
    """The computation is known; ``credit`` jobs may be sent before the first `Credit`."""

    cluster: int
    credit: int
    computation: int = 0  # the broker's number for it, by which nodes know it
    known: bool = False  # it was open before: jobs that were accepted are still there
    durable: bool = False  # jobs are `Accepted` when they are on disk, results want to be heard


class Accepted(Message, tag=72):
    """These jobs are on the broker's disk: they needn't be submitted again."""

    cluster: int
    jobs: list[tuple[int, int]]  # ranges: first and last


class Rejected(Message, tag=73):
    """These jobs were not taken, for ``reason``; send them again when there is `Credit`.

    ``limit`` replaces all credit that was given before.
    """

    cluster: int
    jobs: list[int]
    reason: str
    limit: int


class ClusterLost(Message, tag=74):
    """The cluster isn't this client's (any more), for ``reason``; nothing more comes of it."""

    cluster: int
    reason: str


class Attached(Message, tag=75):
    """The cluster is this client's now. What was not heard before comes as `Results` next."""

    cluster: int
    computation: int
    label: str
    pending: list[tuple[int, int]]  # jobs that have not ended; ranges: first and last
    unheard: int  # jobs that have ended and whose results follow
    is_program: bool = False  # its output is bytes


class Report(Message, tag=76):
    """The answer to `Operate`."""

    request: int
    error: str = ""  # why nothing was done
    text: str = ""  # DRAIN, RESUME, CANCEL, WHY: what was done, or why
    status: BrokerReport | None = None  # STATUS: with some of the nodes and of the clusters
    more: bool = False  # others follow, with others of these


class Credit(Message, tag=21):
    """The client may have submitted ``limit`` jobs of the cluster in all, and no more yet."""

    cluster: int
    limit: int


class Results(Message, tag=22):
    """Jobs that ended at ``node`` (its id; 0: they never got to one)."""

    cluster: int
    node: int
    results: list[JobResult]
    record: int = 0  # number to say in `ResultsHeard`; 0: nobody waits for that


class JobsRunning(Message, tag=23):
    """Jobs that have been running for a while; shorter ones are only reported when they end."""

    cluster: int
    node: int
    jobs: list[tuple[int, float]]  # seq, start in seconds since the epoch


class NodeReady(Message, tag=24):
    """The node has set the computation up and will get jobs."""

    cluster: int
    node: NodeInfo
    cpus: int = 0  # of the node's, that the cluster may use; 0: all
    named: str = ""  # the address by which the cluster names it; empty: by none of them


class NodeGone(Message, tag=25):
    """The node gets no more jobs of this cluster, for ``reason``."""

    cluster: int
    node: int
    reason: str


class NodeTrouble(Message, tag=26):
    """A node that was asked for can't be used so far; it is tried again."""

    cluster: int
    address: str
    reason: str


class Answer(Message, tag=28):
    """The answer to a request that has a number."""

    cluster: int
    request: int
    code: int  # 0 or a count; -1: it failed
    text: str = ""


class NodeOffer(Message, tag=29):
    """A node could be used; the client answers with `Allocate`."""

    cluster: int
    node: NodeInfo
    vitals: Vitals | None = None


class NodeVitals(Message, tag=35):
    """What a node of the cluster has to spare now."""

    cluster: int
    node: int
    vitals: Vitals


class JobsRequeued(Message, tag=36):
    """Jobs that had been given to a node and wait again: it was lost, or they failed there."""

    cluster: int
    jobs: list[int]


class ClusterClosed(Message, tag=27):
    """All nodes have cleaned up; the cluster is forgotten."""

    cluster: int


# -- broker to node -----------------------------------------------------------------------


class Prepare(Message, tag=40):
    """Make the computation ready to run jobs. Answered by `Prepared`."""

    computation: int  # unique for the broker
    spec: ComputationSpec
    cpus: int = 0  # so many jobs at a time; 0: as many as the node has CPUs
    files: list[FileSpec] = []  # for this node only
    setup_args: JobSpec | None = None
    weight: float = 1.0  # its part of the node when others have jobs there as well


class Run(Message, tag=41):
    """Jobs for this node: run as many at a time as there are CPUs, keep the others ready."""

    computation: int
    jobs: list[JobSpec]


class Withdraw(Message, tag=42):
    """Give up to ``count`` jobs back that have not begun. Answered by `Returned`."""

    computation: int
    count: int


class Kill(Message, tag=43):
    """End these attempts (seq, attempt); each still ends with a result."""

    computation: int
    jobs: list[tuple[int, int]]


class Release(Message, tag=44):
    """End what still runs of the computation, remove all of it; answered by `Released`.

    ``keep``: leave its files, since it is going to be prepared anew.
    """

    computation: int
    keep: bool = False


class Inventory(Message, tag=45):
    """What a node should hold, after a new session: it drops all else.

    Sent by the broker as the answer to `Holding`.
    """

    jobs: list[tuple[int, int, int]]  # computation, seq, attempt


class SetCpus(Message, tag=46):
    """Run so many jobs of the computation at a time from now on."""

    computation: int
    cpus: int


class PutFile(Message, tag=47):
    """Put a file into the computation's folder; answered by `FilePut`."""

    computation: int
    request: int
    file: FileSpec


class Follow(Message, tag=48):
    """Tell what these attempts print (seq, attempt)."""

    computation: int
    jobs: list[tuple[int, int]]


# -- node to broker -----------------------------------------------------------------------


class Prepared(Message, tag=60):
    """The computation can run jobs, unless ``error`` says why not."""

    computation: int
    error: str = ""
    declined: bool = False  # nothing went wrong: the node takes no more computations


class Done(Message, tag=61):
    """Attempts that have ended."""

    computation: int
    results: list[JobResult]


class Started(Message, tag=62):
    """Attempts that have been running for a while: seq, attempt, start since the epoch."""

    computation: int
    jobs: list[tuple[int, int, float]]


class Returned(Message, tag=63):
    """Attempts that have not begun and will not, here (seq, attempt)."""

    computation: int
    jobs: list[tuple[int, int]]
    asked: bool = True  # it answers a `Withdraw`; False: the node is being stopped


class Released(Message, tag=64):
    """Nothing is left of the computation at this node."""

    computation: int


class Holding(Message, tag=65):
    """What a node holds when a new session begins: all attempts not yet reported."""

    computations: list[int]
    jobs: list[tuple[int, int, int]]  # computation, seq, attempt
    vitals: Vitals | None = None


class FilePut(Message, tag=66):
    """The file is there, unless ``error`` says why not."""

    computation: int
    request: int
    error: str = ""


class Service(Message, tag=68):
    """Whether the node takes jobs now; sent when that changes, and after each `Holding`.

    When it doesn't, jobs that have begun go on, and the broker takes the others back.
    """

    open: bool
    reason: str = ""  # for people, when it doesn't


class Pulse(Message, tag=67):
    """What the node has to spare now; sent at the shortest pulse_interval of its computations."""

    vitals: Vitals


Body: TypeAlias = (
    OpenCluster
    | Submit
    | CancelJobs
    | CloseCluster
    | FollowJobs
    | NodeRequest
    | Allocate
    | SendFile
    | Explain
    | ResultsHeard
    | Attach
    | Operate
    | Define
    | Records
    | RecordsHeard
    | NeedBlobs
    | BlobPieces
    | ClusterOpened
    | Accepted
    | Rejected
    | ClusterLost
    | Attached
    | Report
    | Credit
    | Results
    | JobsRunning
    | NodeReady
    | NodeGone
    | NodeTrouble
    | Answer
    | NodeOffer
    | NodeVitals
    | JobsRequeued
    | ClusterClosed
    | Prepare
    | Run
    | Withdraw
    | Kill
    | Release
    | Inventory
    | SetCpus
    | PutFile
    | Follow
    | Prepared
    | Done
    | Started
    | Returned
    | Released
    | Holding
    | FilePut
    | Service
    | Pulse
)


class Envelope(Message, tag=6):
    """Messages of a session, in order, and how much of the other side's has arrived.

    ``seq`` counts envelopes from 1; 0 is a bare sign of life, which needs no acknowledgement.
    """

    epoch: int
    seq: int
    ack: int
    messages: list[Body]
    more: bool = False  # only chunks, for a header that is still to come
    sent: int = 0  # in a sign of life: the last envelope sent before it


Frame: TypeAlias = (
    Hello | Welcome | Refused | Unknown | Goodbye | Envelope | Relayed | Cached | Nudge
)
