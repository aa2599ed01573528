"""What passes through the broker between clients and nodes, and what it stops."""

from __future__ import annotations

import pytest

from dispy.broker.blobs import HELD_MAX, LATE_S, UNDERWAY_MAX
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CLOSE,
    OUTPUT,
    Answer,
    BlobPiece,
    BlobPieces,
    BlobRange,
    CloseCluster,
    Code,
    Define,
    FilePut,
    FileSpec,
    Heard,
    Holding,
    JobRecord,
    JobSpec,
    NeedBlobs,
    NodeRequest,
    NodeVitals,
    Prepare,
    Pulse,
    PutFile,
    Records,
    RecordsHeard,
    Run,
    SendFile,
)

from .stage import CLIENT, LAYER, VITALS, Stage, identity

LATER = Code("3.11", JobSpec(0, 0, b"class C"))
FILE = FileSpec("data", b"d" * 32, 10)


# -- code -----------------------------------------------------------------------------------


def test_later_layers_go_to_all_nodes_now_and_to_come() -> None:
    stage = Stage()
    stage.node("ready")
    stage.node("preparing", ready=False)
    first = stage.one(Prepare)
    stage.tell(CLIENT, Define(1, [LATER]))
    said = stage.take(Define)
    assert sorted(peer for peer, _ in said) == ["preparing", "ready"]
    assert all(define == Define(stage.number, [LATER]) for _, define in said)
    assert first.spec.layers == [LAYER]  # it may still be on its way
    stage.node("late", ready=False)
    assert stage.one(Prepare).spec.layers == [LAYER, LATER]


def test_layers_come_before_the_jobs_that_need_them() -> None:
    stage = Stage()
    stage.node("n")
    stage.scheduler.receive(CLIENT, Define(1, [LATER]), 0.0)
    stage.submit(1)
    kinds = [type(message) for _, message in stage.sent]
    assert kinds.index(Define) < kinds.index(Run)


def test_layers_are_sent_again_in_a_new_session() -> None:
    stage = Stage()
    stage.node("n")
    stage.tell(CLIENT, Define(1, [LATER]))
    stage.take(Define)
    stage.join("n")
    stage.tell("n", Holding([stage.number], []))
    assert stage.one(Define).layers == [LATER]
    stage.lose("n")
    stage.join("n")
    stage.tell("n", Holding([stage.number], []))
    assert stage.one(Define).layers == [LATER]


# -- files ----------------------------------------------------------------------------------


def test_a_file_is_put_at_a_node_and_the_client_hears_of_it() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.tell(CLIENT, SendFile(1, 5, number, FILE))
    assert stage.one(PutFile) == PutFile(stage.number, 5, FILE)
    assert stage.take(Answer) == []
    stage.tell("n", FilePut(stage.number, 5))
    assert stage.one(Answer) == Answer(1, 5, 0)
    stage.tell("n", FilePut(stage.number, 5))
    assert stage.take(Answer) == []
    stage.tell(CLIENT, SendFile(1, 6, number, FILE))
    stage.tell("n", FilePut(stage.number, 6, "disk full"))
    assert stage.one(Answer) == Answer(1, 6, -1, "disk full")


def test_a_file_waits_until_its_node_is_ready_and_is_sent_again() -> None:
    stage = Stage()
    number = stage.node("n", ready=False)
    stage.tell(CLIENT, SendFile(1, 5, number, FILE))
    assert stage.take(PutFile) == []
    stage.prepared()
    assert stage.one(PutFile).request == 5
    stage.join("n")
    stage.tell("n", Holding([stage.number], []))
    assert stage.one(PutFile).request == 5


@pytest.mark.parametrize("end", ["lost", "closed", "cluster closed", "unknown"])
def test_a_file_that_can_not_be_put_is_answered(end: str) -> None:
    stage = Stage()
    number = stage.node("n")
    stage.tell(CLIENT, SendFile(1, 5, number + (end == "unknown"), FILE))
    if end == "lost":
        stage.lose("n")
    elif end == "closed":
        stage.tell(CLIENT, NodeRequest(1, 9, CLOSE, number))
    elif end == "cluster closed":
        stage.tell(CLIENT, CloseCluster(1))
    answers = {answer.request: answer for _, answer in stage.take(Answer)}
    assert answers[5].code == -1 and answers[5].text


# -- vitals ---------------------------------------------------------------------------------


def test_the_client_hears_how_its_nodes_are() -> None:
    stage = Stage()
    stage.join("n")
    stage.tell("n", Holding([], [], VITALS))
    number = stage.scheduler.nodes["n"].id
    assert stage.take(NodeVitals) == []
    stage.prepared()
    assert stage.one(NodeVitals) == NodeVitals(1, number, VITALS)
    stage.tell("n", Pulse(VITALS))
    assert stage.one(NodeVitals) == NodeVitals(1, number, VITALS)
    with pytest.raises(ProtocolError):
        stage.tell(CLIENT, Pulse(VITALS))


# -- records --------------------------------------------------------------------------------


def record(seq: int, attempt: int = 1, number: int = 1) -> JobRecord:
    return JobRecord(seq, attempt, number, OUTPUT, b"text")


def test_records_go_to_the_client_and_its_answers_to_the_node() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1)
    stage.tell("n", Records(stage.number, [record(1)]))
    [(peer, records)] = stage.take(Records)
    assert peer == CLIENT and records == Records(1, [record(1)], number)
    stage.tell(CLIENT, RecordsHeard(1, [Heard(1, 1, 1), Heard(2, 1, 1)]))
    [(peer, heard)] = stage.take(RecordsHeard)
    assert peer == "n" and heard == RecordsHeard(stage.number, [Heard(1, 1, 1)])


def test_records_of_older_attempts_are_stopped_and_their_senders_freed() -> None:
    stage = Stage(reentrant=True)
    stage.node("old")
    stage.submit(1)
    stage.lose("old")
    stage.node("new")
    stage.node("old")
    stage.tell("old", Records(stage.number, [record(1, 1)]))
    assert stage.take(Records) == []
    [(peer, heard)] = stage.take(RecordsHeard)
    assert peer == "old" and heard.jobs[0].error and heard.jobs[0].attempt == 1
    stage.tell("old", Records(stage.number, [record(1, 2)]))  # it doesn't have that attempt
    assert stage.take(Records) == []
    stage.tell("new", Records(stage.number, [record(1, 2)]))
    assert len(stage.take(Records)) == 1
    stage.take(RecordsHeard)
    stage.tell(CLIENT, RecordsHeard(1, [Heard(1, 1, 1)]))
    assert stage.take(RecordsHeard) == []


def test_answers_that_were_not_delivered_are_sent_again() -> None:
    stage = Stage()
    stage.node("n")
    heard = RecordsHeard(stage.number, [Heard(1, 1, 1)])
    stage.scheduler.joined("n", identity("node", "n", 1), [heard], "", 0.0)
    stage.flush()
    assert stage.take(RecordsHeard) == [("n", heard)]


# -- blobs ----------------------------------------------------------------------------------


def pieces(*offsets: int) -> list[BlobRange]:
    return [BlobRange(b"d" * 32, offset, 1) for offset in offsets]


def answers(ranges: list[BlobRange]) -> list[BlobPiece]:
    return [BlobPiece(each.digest, each.offset, b"x") for each in ranges]


def test_pieces_of_blobs_go_from_the_client_to_the_node_that_asked() -> None:
    stage = Stage()
    number = stage.node("n", ready=False)
    stage.tell("n", NeedBlobs(stage.number, 0, pieces(0, 1)))
    assert stage.one(NeedBlobs) == NeedBlobs(1, number, pieces(0, 1))
    stage.tell("n", NeedBlobs(stage.number, 0, pieces(1)))
    assert stage.take(NeedBlobs) == []  # the client was asked already
    stage.tell(CLIENT, BlobPieces(1, number, answers(pieces(0, 5))))
    [(peer, passed)] = stage.take(BlobPieces)
    assert peer == "n" and passed == BlobPieces(stage.number, number, answers(pieces(0)))


def test_requests_are_held_back_until_nodes_have_had_their_pieces() -> None:
    stage = Stage()
    number = stage.node("n", ready=False)
    wanted = pieces(*range(UNDERWAY_MAX + 2))
    stage.tell("n", NeedBlobs(stage.number, 0, wanted))
    assert stage.one(NeedBlobs).ranges == wanted[:UNDERWAY_MAX]
    stage.tell(CLIENT, BlobPieces(1, number, answers(wanted[:UNDERWAY_MAX])))
    assert stage.take(NeedBlobs) == []  # sent, but not there yet
    stage.tell("n", NeedBlobs(stage.number, 0, [], 1))
    assert stage.one(NeedBlobs).ranges == wanted[UNDERWAY_MAX:-1]
    stage.tell("n", NeedBlobs(stage.number, 0, [], 1))
    assert stage.take(NeedBlobs) == []
    stage.tell("n", NeedBlobs(stage.number, 0, [], 9))
    assert stage.one(NeedBlobs).ranges == wanted[-1:]


def test_a_node_that_does_not_say_what_it_has_had_holds_nobody_up_for_ever() -> None:
    stage = Stage()
    number = stage.node("n", ready=False)
    wanted = pieces(*range(UNDERWAY_MAX + 1))
    stage.tell("n", NeedBlobs(stage.number, 0, wanted))
    stage.take(NeedBlobs)
    assert stage.scheduler.deadline() == float("inf")  # the client will answer
    stage.tell(CLIENT, BlobPieces(1, number, answers(wanted[:-1])))
    stage.now = stage.scheduler.deadline()
    assert stage.now == LATE_S
    stage.flush()
    assert stage.one(NeedBlobs).ranges == wanted[-1:]


def test_nodes_take_turns_with_blobs() -> None:
    stage = Stage()
    numbers = [stage.node(name, ready=False) for name in ("one", "two")]
    stage.scheduler.receive("one", NeedBlobs(stage.number, 0, pieces(*range(100))), 0.0)
    stage.tell("two", NeedBlobs(stage.number, 0, pieces(*range(100))))
    asked = {message.node: len(message.ranges) for _, message in stage.take(NeedBlobs)}
    assert asked == dict.fromkeys(numbers, UNDERWAY_MAX // 2)


@pytest.mark.parametrize("end", ["lost", "new session", "closed"])
def test_a_node_that_needs_no_more_gives_its_room_back(end: str) -> None:
    stage = Stage()
    number, _ = stage.node("one", ready=False), stage.node("two", ready=False)
    stage.tell("one", NeedBlobs(stage.number, 0, pieces(*range(UNDERWAY_MAX + 9))))
    stage.tell("two", NeedBlobs(stage.number, 0, pieces(0)))
    ranges = stage.one(NeedBlobs).ranges
    stage.tell(CLIENT, BlobPieces(1, number, answers(ranges[:3])))
    if end == "lost":
        stage.lose("one")
    elif end == "new session":
        stage.join("one")
    else:
        stage.tell(CLIENT, NodeRequest(1, 9, CLOSE, number))
        stage.tell("one", NeedBlobs(stage.number, 0, [], 3))
    stage.flush()
    [(_, need)] = stage.take(NeedBlobs)
    assert need.ranges == pieces(0) and need.node != number
    stage.take(BlobPieces)
    stage.tell(CLIENT, BlobPieces(1, number, answers(ranges[3:])))
    assert stage.take(BlobPieces) == []  # nobody waits for these any more


def test_a_client_with_a_new_session_is_asked_again() -> None:
    stage = Stage()
    stage.node("n", ready=False)
    stage.tell("n", NeedBlobs(stage.number, 0, pieces(0, 1)))
    stage.take(NeedBlobs)
    stage.scheduler.joined(CLIENT, identity("client", CLIENT), [], "", 0.0)
    stage.flush()
    assert stage.one(NeedBlobs).ranges == pieces(0, 1)


def test_requests_for_nothing_are_dropped_and_too_many_refused() -> None:
    stage = Stage()
    stage.node("n", ready=False)
    stage.tell("n", NeedBlobs(99, 0, pieces(0)))
    assert stage.take(NeedBlobs) == []
    with pytest.raises(ProtocolError):
        stage.tell("n", NeedBlobs(stage.number, 0, pieces(*range(HELD_MAX + 1))))
