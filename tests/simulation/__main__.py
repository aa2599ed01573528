"""Play seeds from the command line: ``python -m tests.simulation 17`` shows one failing run.

``python -m tests.simulation 0 1000`` plays many and prints those that fail; ``--faults`` and
``--durable`` must be the same as in the run that failed, since a seed is a run only together with
them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback

from dispy.protocol.messages import Buffer, Envelope
from dispy.protocol.wire import Codec

from .network import End
from .scenarios import FAULTS_MAX, from_seed, play
from .sharedworlds import from_shared_seed
from .world import World

SHOWN = 160  # characters of a message


def main() -> int:
    """Play what the command line says; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("end", type=int, nargs="?", help="play all seeds up to this one")
    parser.add_argument("--faults", type=int, default=FAULTS_MAX, help="at most in one run")
    parser.add_argument("--durable", action="store_true", help="a shared broker with a journal")
    parser.add_argument("--messages", action="store_true", help="show all messages, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # it has the time of the real clock
    if options.end is None:
        return int(show(options.seed, options.faults, options.durable, options.messages))
    seeds = range(options.seed, options.end)
    failed = [seed for seed in seeds if fails(seed, options.faults, options.durable)]
    return int(bool(failed))


def make(seed: int, faults: int, durable: bool) -> World:
    """Make the world that a seed stands for."""
    return from_shared_seed(seed, faults) if durable else from_seed(seed, faults)


def show(seed: int, faults: int, durable: bool, with_messages: bool) -> bool:
    """Play one seed and print what happened; return whether it failed."""
    world = make(seed, faults, durable)
    if with_messages:
        show_messages(world)
    error = attempt(world)
    print("\n".join(world.log))
    print(f"{world.now:9.3f} the end, digest {world.digest:08x}\n{error}")
    return bool(error)


def fails(seed: int, faults: int, durable: bool) -> bool:
    """Play one seed; print how to play it again if it fails."""
    error = attempt(make(seed, faults, durable))
    if error:
        kind = " --durable" if durable else ""
        again = f"python -m tests.simulation {seed} --faults {faults}{kind}"
        print(f"seed {seed} fails: {again}\n{error}", flush=True)
    return bool(error)


def attempt(world: World) -> str:
    """Play a world; return what went wrong."""
    try:
        play(world)
    except Exception:
        return traceback.format_exc()
    return ""


def show_messages(world: World) -> None:
    """Have all messages noted that arrive."""
    codec, digest = Codec(), world.network.watch

    def watch(end: End, frames: list[Buffer]) -> None:
        digest(end, frames)
        frame, _ = codec.decode(frames[0])
        way = f"  {end.other.socket.machine} to {end.socket.machine}"
        if isinstance(frame, Envelope):
            for message in frame.messages:
                world.note(f"{way}: {message!r:.{SHOWN}}")
        else:
            world.note(f"{way}: {frame!r:.{SHOWN}}")

    world.network.watch = watch


if __name__ == "__main__":
    sys.exit(main())
