"""The format of the bytes between the node and a job process: what both ends agree on.

Constants and plain structures only; `mailboxes` reads and writes them at the job process's end,
`traffic` and `jobprocess` at the node's.

Jobs arrive in *blocks*: `BLOCK` (length of the rest, number of the first job, how many jobs),
then for each job `JOB` (length of its body, how many parts), the sizes of the parts of the last
one, the bodies; behind the block the parts. Only the last job of a block can have parts. Each
job that a process is given has a number, counted from 1, and results carry it: `RESULT`, the
sizes of its parts, its body, its parts. Its second field says how the job ended, or that this
is no result but a *record* of the job that runs: PROVISIONAL or FILE. Records are sent at once,
and so are from then on the results of that process, so that none overtakes a record.

A block without jobs tells something else. With the number of a job: that job, which comes in
the next block, has files (`GivenFiles`, as marshal). With 0: the client has dealt with so many
of the records of this process, and maybe why it refuses the last of them (as marshal).

A process takes a *token* from a pipe before each job: the job's number. The node
puts a token in for each job that it gives, and takes back jobs by taking their tokens out
again, from the last to be run: tokens are only ever read as a whole, so a job belongs to who
has read its token, and to nobody else. Numbers are never used twice. The process that reads
token i drops all jobs before i that it holds: their tokens were taken by the node.

Results wait in the *outbox*, memory shared with the node, until two milliseconds have passed, or
nothing is left to do. Its head holds how many bytes are in it and how many times it has been
emptied. Bytes are written before they are counted, and never change until it is emptied; the
node takes what it finds there when the process has died (or has been quiet for a while), and
drops by number what it has already. The third word of the head is the node's: the number of
the job that the next SIGINT is meant for.

A *lane* (`lane`) is for the node a process for many jobs, but each of its blocks holds one job,
for a process of its own, which leaves to the next what else it has read. Results are sent at once.

The fourth word of the head is the number of the job that runs, in any process; what is in the
output files while it is that is of that job. Two more are hints, for a lane, on whether a job
waits: the numbers of the last one that the node has given, and not taken back, and of the last one
that has begun.
The others are the lane's own business: whose turn it is, up to whom there are processes that wait
for it, how many have sent their results, whether the last job has taken long, how many records
there were, how many bytes are left for later jobs, and, for the node, how many KiB the
last process had that died.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

BLOCK = struct.Struct("<QQI")
JOB = struct.Struct("<QH")
RESULT = struct.Struct("<QBddQH")  # number, kind, start, end, length of the body, parts
FAILED, RETURNED, PROVISIONAL, FILE = range(4)  # kinds
SIZE = struct.Struct("<Q")
TOKEN = struct.Struct("<Q")
BLOCK_BYTES, JOB_BYTES, TOKEN_BYTES = BLOCK.size, JOB.size, TOKEN.size

OUTBOX_BYTES = 1 << 17
OUTBOX_HEAD = 104  # bytes: thirteen words, written whole, so that nobody ever sees half of one
USED, EMPTIED, INTERRUPTED, RUNNING, GIVEN, BEGUN = range(6)  # the words of all processes,
TURN, AHEAD, DONE, LONG, RECORDS, LEFT, PEAK = range(6, 13)  # and those of lanes
FILE_BYTES = 1 << 18  # of a file that a job sends, in one record
OWN_AHEAD = 6  # records that the client has not dealt with; the node adds two of output

EXIT_UNREACHABLE = 72  # the exit code of a process whose connection to the node is closed

# A folder to be made for the job, that of the computation, that of the store, and the files: see
# `jobfolder`.
GivenFiles: TypeAlias = "tuple[str, str, str, list[tuple[str, str, int, int, float]]]"


def head_of(memory: memoryview) -> memoryview:
    """Return the words at the beginning of an outbox."""
    return memory[:OUTBOX_HEAD].cast("Q")
