"""The exit codes of the daemons, so that systemd and scripts know what to do next.

The numbers from 64 on are those of sysexits.h, where it has one that fits.
"""

from __future__ import annotations

STOPPED = 0  # as asked
UNEXPECTED = 1  # an error of ours
USAGE = 2  # wrong options; click says the same
UNAVAILABLE = 69  # the port is taken, or the address isn't of this machine
CANNOT_CREATE = 73  # the folder, the state or the log file can't be made or written
BROKEN_DISK = 74  # the disk or the journal failed while running
LOCKED = 75  # another one is using the state; it may work later
CORRUPT = 76  # the state is damaged, or of a newer version: no use in starting again
NOT_PERMITTED = 77  # by the system
