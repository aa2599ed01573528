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

from dispy.protocol.messages import Buffer, Cached, Envelope, Relayed
from dispy.protocol.wire import Codec

from .network import End
from .relayedworlds import from_relayed_seed
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
    parser.add_argument("--relayed", action="store_true", help="with relays")
    parser.add_argument("--messages", action="store_true", help="show all messages, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # it has the time of the real clock
    if options.end is None:
        return int(show(options.seed, options.faults, kind_of(options), options.messages))
    seeds = range(options.seed, options.end)
    failed = [seed for seed in seeds if fails(seed, options.faults, kind_of(options))]
    return int(bool(failed))


MAKERS = {"": from_seed, "--durable": from_shared_seed, "--relayed": from_relayed_seed}


def kind_of(options: argparse.Namespace) -> str:
    """Return the option that says which kind of world is wanted."""
    if options.relayed:
        return "--relayed"
    return "--durable" if options.durable else ""


def show(seed: int, faults: int, kind: str, with_messages: bool) -> bool:
    """Play one seed and print what happened; return whether it failed."""
    world = MAKERS[kind](seed, faults)
    if with_messages:
        show_messages(world)
    error = attempt(world)
    print("\n".join(world.log))
    print(f"{world.now:9.3f} the end, digest {world.digest:08x}\n{error}")
    return bool(error)


def fails(seed: int, faults: int, kind: str) -> bool:
    """Play one seed; print how to play it again if it fails."""
    error = attempt(MAKERS[kind](seed, faults))
    if error:
        again = f"python -m tests.simulation {seed} --faults {faults} {kind}"
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
        carried = 0
        while isinstance(frame, (Relayed, Cached)) and carried + 1 < len(frames):
            carried += 1
            frame, _ = codec.decode(frames[carried])
        way = f"  {end.other.socket.machine} to {end.socket.machine}"
        if isinstance(frame, Envelope):
            for message in frame.messages:
                world.note(f"{way}: {message!r:.{SHOWN}}")
        else:
            world.note(f"{way}: {frame!r:.{SHOWN}}")

    world.network.watch = watch


if __name__ == "__main__":
    sys.exit(main())
