"""Words of many documents, counted by map and reduce: two clusters that share the nodes.

Jobs of the first cluster map a document to its words, already sorted into parts; as soon as all
have done so, those of the second reduce each part to counts. Both can be run again without harm
when a node is lost, so both clusters are ``reentrant``.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from node_option import command_line

import dispy

DOCUMENTS = 12
PARTS = 4
SHOWN = 5
WORDS = ("time", "person", "year", "way", "day", "thing", "world", "life", "hand", "part", "child")


def map_words(document: str) -> list[list[str]]:
    """Run as a job: sort the long words of a document into parts, the same word always into one."""
    parts: list[list[str]] = [[] for _ in range(PARTS)]
    for word in document.casefold().split():
        if len(word) > 3:
            parts[sum(map(ord, word)) % PARTS].append(word)
    return parts


def reduce_words(lists: list[list[str]]) -> dict[str, int]:
    """Run as a job: count all words of a part."""
    counts: Counter[str] = Counter()
    for words in lists:
        counts.update(words)
    return dict(counts)


def write_documents() -> list[str]:
    dice = random.Random(0)
    weights = range(len(WORDS), 0, -1)
    return [" ".join(dice.choices(WORDS, weights, k=20_000)) for _ in range(DOCUMENTS)]


def results(jobs: list[dispy.DispyJob]) -> list[Any]:
    """Wait for all jobs; return their results. Ends the program when one has failed."""
    found = [job() for job in jobs]
    for job in jobs:
        if job.status != dispy.DispyJob.Finished:
            raise SystemExit(f"job {job.id} failed:\n{job.exception}")
    return found


def main() -> int:
    options = command_line(__doc__).parse_args()
    documents = write_documents()
    counts: Counter[str] = Counter()
    with (
        dispy.JobCluster(map_words, nodes=options.nodes, reentrant=True) as mappers,
        dispy.JobCluster(reduce_words, nodes=options.nodes, reentrant=True) as reducers,
    ):
        mapped = results([mappers.submit(document) for document in documents])
        print(f"{len(mapped)} documents mapped, each to {PARTS} parts", flush=True)
        parts = zip(*mapped, strict=True)  # part 0 of all documents, part 1 of all, ...
        for reduced in results([reducers.submit(part) for part in parts]):
            print(f"different words of a part: {len(reduced)}", flush=True)
            counts.update(reduced)
    for word, count in counts.most_common(SHOWN):
        print(f"{count:8,} {word}")
    expected = Counter(word for text in documents for word in text.split() if len(word) > 3)
    print("The counts are right:", counts == expected)
    return 0 if counts == expected else 1


if __name__ == "__main__":
    raise SystemExit(main())
