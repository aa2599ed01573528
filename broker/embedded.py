"""A broker in the client's own process, so that a single client needs no daemon.

One for each process, started at first use and shared by all its clusters.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass

from .daemon import BrokerDaemon

STOP_S = 2.0
log = logging.getLogger("dispy.broker")


@dataclass
class Broker:
    """Where the embedded broker can be reached."""

    address: str  # for clients of this process
    port: int  # on 127.0.0.1, for nodes that dial in
    daemon: BrokerDaemon
    thread: threading.Thread
    pid: int


_lock = threading.Lock()
_broker: Broker | None = None


def start(software: str, port: int = 0) -> Broker:
    """Start the process's broker unless it runs; nodes dial in at ``port`` or a free one."""
    global _broker
    with _lock:
        if _broker is None or _broker.pid != os.getpid() or not _broker.thread.is_alive():
            daemon = BrokerDaemon(software)
            address = daemon.listen(f"inproc://dispy-broker-{os.getpid()}-{id(daemon)}")
            try:
                door = daemon.listen(f"127.0.0.1:{port}")
            except OSError:
                log.debug("port %d is taken; nodes dial in at another one", port)
                door = daemon.listen("127.0.0.1:0")
            thread = threading.Thread(target=daemon.run, name="dispy-broker", daemon=True)
            thread.start()
            real_port = int(door.rpartition(":")[2])
            _broker = Broker(address, real_port, daemon, thread, os.getpid())
        return _broker


def stop() -> None:
    """End the broker; nodes are told, and what runs there for it is ended."""
    global _broker
    with _lock:
        broker, _broker = _broker, None
    if broker is not None and broker.pid == os.getpid():
        broker.daemon.stop()
        broker.thread.join(STOP_S)
