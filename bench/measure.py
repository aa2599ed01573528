"""All measurements, by name; ``python -m bench.measure NAME`` makes one and prints its figures.

Each is made in a process of its own, so that none suffers from the threads, the memory or the
children that another one left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from . import (
    encryption,
    files,
    forks,
    instances,
    peers,
    pools,
    queue,
    relay,
    scheduler,
    shared,
    sockets,
    startup,
    throughput,
)
from . import streams as streams_of_jobs
from .rounds import Figures
from .work import Scale, Start, no_op, pause

MIB = 1 << 20
MESSAGE_BYTES = 100
WINDOW = 1000  # raw messages on their way
LARGE_IN_FLIGHT = 4  # payloads on their way: two are worked on, two travel


class System(NamedTuple):
    """A pool, and how much it is given to do: a second or so."""

    start: Start
    jobs: int
    turns: int


SYSTEMS = {
    "reused": System(pools.reused, 50_000, 2_000),
    "fresh": System(pools.fresh, 2_000, 1_000),
    "executor": System(pools.executor, 10_000, 2_000),
    "pool": System(pools.pool_of_fresh, 400, 200),
}
PEER_JOBS, PEER_TURNS = 2_000, 300


def rate(name: str, scale: Scale) -> Figures:
    """No-op jobs/s."""
    system = SYSTEMS[name]
    with system.start(no_op) as runner:
        return {f"rate.{name}": throughput.jobs_per_s(runner, scale.count(system.jobs))}


def turns(name: str, scale: Scale) -> Figures:
    """Round trips."""
    system = SYSTEMS[name]
    with system.start(no_op) as runner:
        times = throughput.round_trip(runner, scale.count(system.turns))
    return {f"p50.{name}": times.p50_ms, f"p99.{name}": times.p99_ms}


def payloads(name: str, scale: Scale) -> Figures:
    """Large arguments and results."""
    with SYSTEMS[name].start(no_op) as runner:
        small = throughput.payload_mb_per_s(runner, MIB, scale.count(200), LARGE_IN_FLIGHT)
        large = throughput.payload_mb_per_s(runner, 32 * MIB, scale.count(20), LARGE_IN_FLIGHT)
    return {f"1MiB.{name}": small, f"32MiB.{name}": large}


def efficiencies(name: str, scale: Scale) -> Figures:
    """How much of two workers is used by sleeping jobs."""
    with SYSTEMS[name].start(pause) as runner:
        # The counts belong to the targets, so a quick run has the same.
        long = throughput.efficiency(runner, 0.010, 200)
        short = throughput.efficiency(runner, 0.001, 2_000)
    return {f"10ms.{name}": long, f"1ms.{name}": short}


def cpu(name: str, scale: Scale) -> Figures:
    """CPU time per no-op job."""
    system = SYSTEMS[name]
    with system.start(no_op) as runner:
        times = throughput.cpu_time(runner, scale.count(4 * system.jobs))
    return {f"cpu.{name}": times.all_us, f"here.{name}": times.here_us}


def queued(_: Scale) -> Figures:
    """A million jobs waiting: as many in a quick run, for the number belongs to the targets."""
    figures = queue.queue(1_000_000)
    return {
        "queue.bytes": figures.bytes_per_job,
        "queue.first": figures.first_per_s,
        "queue.last": figures.last_per_s,
    }


def raw(scale: Scale) -> Figures:
    """What ZeroMQ does with nobody in the way."""
    return {
        "zmq.turns": sockets.turns_per_s(scale.count(100_000), MESSAGE_BYTES, WINDOW),
        "1MiB.zmq": sockets.payload_mb_per_s(MIB, scale.count(200), LARGE_IN_FLIGHT),
        "32MiB.zmq": sockets.payload_mb_per_s(32 * MIB, scale.count(20), LARGE_IN_FLIGHT),
    }


def processes(scale: Scale) -> Figures:
    """What fork does with nobody in the way."""
    count = scale.count(1_000)
    return {"fork.rate": forks.forks_per_s(count), "fork.served": forks.served_per_s(count)}


def decisions(scale: Scale) -> Figures:
    """The scheduler without I/O."""
    few = scheduler.jobs_per_s(1_000, scale.count(200_000))
    many = scheduler.jobs_per_s(10_000, scale.count(200_000))
    one = scheduler.jobs_per_s(100, scale.count(200_000))
    crowd = scheduler.jobs_per_s(100, scale.count(200_000), 300)
    return {
        "scheduler.1000": few,
        "scheduler.10000": many,
        "scheduler.cost": few / many,
        "scheduler.crowd": crowd,
        "scheduler.crowd.cost": one / crowd,
    }


def objects(scale: Scale) -> Figures:
    """Arguments that are instances of the program's classes."""
    measured = instances.rates(scale.count(30_000))
    return {f"class.{kind}": value for kind, value in measured.items()}


def encrypted(scale: Scale) -> Figures:
    """The same with a secret and without."""
    measured = encryption.rates(scale.count(20_000), scale.count(10))
    return {f"curve.{name}": value for name, value in measured.items()}


def transfers(_: Scale) -> Figures:
    """A large file in depends; its size belongs to the target."""
    figures = files.transfer(200)
    return {
        "file.rate": figures.mb_per_s,
        "file.whole": figures.whole_mb_per_s,
        "file.client": figures.client_growth_bytes / MIB,
        "file.node": figures.node_growth_bytes / MIB,
        "file.again": figures.again_bytes / MIB,
    }


def streams(scale: Scale) -> Figures:
    """Jobs that say much."""
    results = streams_of_jobs.provisional(scale.count(50_000))
    sent = streams_of_jobs.small_files(scale.count(10_000))
    return {
        "stream.results": results.per_s,
        "stream.results.client": results.client_growth_bytes / MIB,
        "stream.results.node": results.node_growth_bytes / MIB,
        "stream.files": sent.per_s,
        "stream.files.client": sent.client_growth_bytes / MIB,
        "stream.files.node": sent.node_growth_bytes / MIB,
    }


def shared_rates(name: str, scale: Scale) -> Figures:
    """A shared broker, with and without its journal."""
    journal = name == "journal"
    reused, fresh = shared.rates(journal, scale.count(50_000), scale.count(2_000))
    turn_ms = shared.round_trip_ms(journal, scale.count(1_000))
    return {f"shared.{name}": reused, f"shared.fresh.{name}": fresh, f"shared.p50.{name}": turn_ms}


def restarts(_: Scale) -> Figures:
    """A million jobs at a broker that is killed; the number belongs to the target."""
    figures = shared.restart(1_000_000)
    return {
        "restart.accepted": figures.accepted_per_s,
        "restart.bytes": figures.broker_bytes,
        "restart.ready": figures.ready_s,
    }


def fairness(_: Scale) -> Figures:
    """Clusters of equal weight, and a newcomer."""
    return {"fair.jain": shared.jain(5), "fair.newcomer": shared.newcomer(1_000_000)}


def relays(scale: Scale) -> Figures:
    """A node behind a relay, and without."""
    direct, relayed = relay.rates(scale.count(50_000))
    direct_ms, relayed_ms = relay.round_trips_ms(scale.count(1_000))
    return {
        "relay.rate": relayed,
        "relay.rate.direct": direct,
        "relay.p50": relayed_ms,
        "relay.p50.direct": direct_ms,
    }


def start_up(_: Scale) -> Figures:
    """What a user waits for."""
    return {
        "start.import": startup.import_ms(),
        "start.help": startup.node_help_ms(),
        "start.first": startup.first_result_s(),
    }


def peer(name: str, scale: Scale) -> Figures:
    """Another system, if it is there; no figures if it isn't."""
    module, start = peers.PEERS[name]
    if not peers.installed(module):
        return {}
    with start(no_op) as runner:
        jobs = throughput.jobs_per_s(runner, scale.count(PEER_JOBS))
        times = throughput.round_trip(runner, scale.count(PEER_TURNS))
    return {f"rate.{name}": jobs, f"p50.{name}": times.p50_ms, f"p99.{name}": times.p99_ms}


def _named(kind: str, measure: Callable[[str, Scale], Figures], *names: str) -> Registry:
    """Return one measurement for each system."""
    return {f"{kind}-{name}": _bound(measure, name) for name in names}


def _bound(measure: Callable[[str, Scale], Figures], name: str) -> Measurement:
    return lambda scale: measure(name, scale)


Measurement: TypeAlias = Callable[[Scale], Figures]
Registry: TypeAlias = dict[str, Measurement]
MEASUREMENTS: Registry = {
    "zmq": raw,
    "fork": processes,
    "start": start_up,
    **_named("rate", rate, "executor", "reused", "pool", "fresh"),
    **_named("turns", turns, "executor", "reused", "fresh"),
    **_named("payload", payloads, "executor", "reused"),
    **_named("efficiency", efficiencies, "executor", "reused", "fresh"),
    **_named("cpu", cpu, "executor", "reused", "fresh"),
    "queue": queued,
    **_named("shared", shared_rates, "journal", "none"),
    "restart": restarts,
    "fair": fairness,
    "relay": relays,
    "class": objects,
    "curve": encrypted,
    "file": transfers,
    "stream": streams,
    "scheduler": decisions,
    **_named("peer", peer, *peers.PEERS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    figures = MEASUREMENTS[options.name](Scale(options.quick))
    print(json.dumps(figures))
    sys.stdout.flush()
    os._exit(0)  # nothing is left to be cleaned up, but for a million jobs that wait


if __name__ == "__main__":
    main()
