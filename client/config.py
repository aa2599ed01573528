"""Settings of the whole process; set them before the first cluster is created.

The other ports follow ``DispyPort``: they are worked out whenever they are read, unless they
have been set themselves.
"""

from __future__ import annotations

DispyPort = 9700  # the first of the range of ports
HTTPServerPort = 8181
IPv4MulticastGroup = "239.255.61.59"
IPv6MulticastGroup = "ff05::674f:48ba:b409:3171:9705"
MsgTimeout = 10  # seconds to wait for an answer about nodes, or for progress with a file
MaxFileSize = 0  # bytes of a file that is sent or received; 0: no limit
SharedSchedulerClientPort = 0  # 0: any

_OFFSETS = {"ClientPort": 0, "NodePort": 1, "SharedSchedulerPort": 2}


def __getattr__(name: str) -> int:
    if name not in _OFFSETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return DispyPort + _OFFSETS[name]
