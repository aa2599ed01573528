"""The parameters of a cluster, checked: a wrong one raises where it was written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from dispy.broker.embedded import Site
from dispy.protocol import listening, protection
from dispy.protocol.folders import FileNameError, parts_of
from dispy.protocol.messages import FileSpec, JobOptions
from dispy.protocol.protection import Protection
from dispy.protocol.secret import Secret, SecretError

from .allocate import PORT_MAX
from .log import logger

PULSE_MIN_S = 0.1
PULSE_MAX_S = 1000.0
PULSE_S = 5.0  # the default
GRACE_S = 5.0  # from the interrupt of a cancelled job to the end of its process
GRACE_MAX_S = 3600.0
YEAR_S = 366 * 86400.0  # the most that may be waited for
RETRIES_MAX = 1_000_000
PRIORITY_MAX = 1 << 31
LABEL_MAX = 200  # characters
WEIGHT_MIN = 1e-3
WEIGHT_MAX = 1e6


@dataclass(frozen=True)
class Given:
    """What clusters of both kinds are given, as it was written: see `JobCluster`."""

    computation: Any
    nodes: Any
    depends: Any
    job_status: Any
    cluster_status: Any
    job_output: Any
    host: Any
    ext_host: Any
    dispy_port: Any
    dest_path: Any
    loglevel: Any
    setup: Any
    cleanup: Any
    poll_interval: Any
    reentrant: Any
    secret: Any
    keyfile: Any
    certfile: Any
    insecure: Any
    recover_file: Any
    max_tasks_per_child: Any
    cancel_grace: Any
    setup_timeout: Any
    timeout: Any
    retries: Any
    priority: Any
    pulse_interval: Any = None  # a shared broker has its own

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Given:
        """Take the arguments of a cluster that are called as the fields are."""
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in arguments.items() if name in names})


class Options(NamedTuple):
    """What a computation says about its jobs: see `messages.ComputationSpec`."""

    reentrant: bool
    max_tasks: int  # 0: no limit
    pulse_s: float
    grace_s: float
    setup_s: float  # 0: no limit


class JobDefaults(NamedTuple):
    """What holds for the jobs of a cluster that don't say anything else."""

    timeout_s: float  # 0: no limit
    retries: int
    priority: int
    follow: bool  # what they print is told

    def options(
        self,
        timeout: Any = None,
        retries: Any = None,
        priority: Any = None,
        node: int = 0,
        files: list[FileSpec] | None = None,
    ) -> JobOptions | None:
        """Return the options of a job; None: it has none. Raises for a wrong one, naming it."""
        read = JobOptions(
            self.priority if priority is None else _priority("dispy_job_priority", priority),
            self.timeout_s if timeout is None else check_seconds("dispy_job_timeout", timeout),
            self.retries if retries is None else _retries("dispy_job_retries", retries),
            node,
            self.follow,
            files or [],
        )
        return None if read == NO_OPTIONS else read


NO_OPTIONS = JobOptions()


def read_protection(
    secret: Any = "", keyfile: Any = None, certfile: Any = None, insecure: Any = False
) -> Protection:
    """Return how a cluster is protected: by what is given, or else by the environment.

    Raises `SecretError`, which is a `ValueError`, for a secret that can't be read.
    """
    check_flag("insecure", insecure)
    if isinstance(secret, Secret):  # our own commands have found it already
        return Protection(secret)
    if secret is not None and not isinstance(secret, str):
        raise TypeError("secret must be a text")  # whatever it is, it isn't to be seen
    files = {"keyfile": keyfile, "certfile": certfile}
    for name, path in files.items():
        if path is not None and not isinstance(path, str | os.PathLike):
            raise TypeError(f"{name} must be the path of a file, not {path!r}")
    paths = {name: os.fspath(path) if path else "" for name, path in files.items()}
    given = [name for name, value in {"secret": secret, **paths}.items() if value]
    try:
        return protection.find(secret or "", "", insecure=insecure, **paths)
    except SecretError as error:
        raise SecretError(f"{' and '.join(given) or 'secret'}: {error}") from None


def read_site(given: Given, protected: Protection) -> Site:
    """Return where this process listens for nodes. Raises `SecretNeededError`, and `OSError`."""
    hosts = listening.hosts_to_listen("host", check_names("host", given.host), protected)
    ext_hosts = check_names("ext_host", given.ext_host)
    for host in ext_hosts:
        try:
            listening.split(host)
        except ValueError as error:
            raise ValueError(f"ext_host: {error}") from None
    return Site(protected, tuple(hosts), tuple(ext_hosts))


def check_names(parameter: str, value: object) -> list[str]:
    """Allow a host name, a list of them, or nothing; return them as a list."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise TypeError(f"{parameter} must be a host name or a list of them, not {value!r}")
    names = list(names)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{parameter} must be a host name or a list of them, not {value!r}")
    return names


def check_flag(name: str, value: object) -> None:
    """Allow True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_port(name: str, port: Any) -> None:
    """Allow a port that leaves room for the next two, or nothing."""
    if port is None:
        return
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"{name} must be a port number, not {port!r}")
    if not 0 < port <= PORT_MAX - 2:
        raise ValueError(f"{name} must be a port number from 1 to {PORT_MAX - 2}, not {port}")


def read_options(
    reentrant: Any,
    max_tasks_per_child: Any,
    pulse_interval: Any,
    cancel_grace: Any,
    setup_timeout: Any = None,
) -> Options:
    """Check what a computation says about its jobs, and put defaults in place."""
    check_flag("reentrant", reentrant)
    pulse_s = PULSE_S
    if pulse_interval is not None:
        pulse_s = check_seconds("pulse_interval", pulse_interval, PULSE_MIN_S, PULSE_MAX_S)
    grace_s = check_seconds("cancel_grace", cancel_grace, 0.0, GRACE_MAX_S)
    setup_s = 0.0 if setup_timeout is None else check_seconds("setup_timeout", setup_timeout)
    return Options(reentrant, _max_tasks(max_tasks_per_child), pulse_s, grace_s, setup_s)


def read_job_defaults(timeout: Any, retries: Any, priority: Any, follow: bool) -> JobDefaults:
    """Check what a cluster says about each of its jobs."""
    timeout_s = 0.0 if timeout is None else check_seconds("timeout", timeout)
    return JobDefaults(
        timeout_s, _retries("retries", retries), _priority("priority", priority), follow
    )


def read_dest_path(dest_path: Any) -> str:
    """Return the folder to use at nodes, below their own; "": a new one."""
    if dest_path is None or dest_path == "":
        return ""
    if not isinstance(dest_path, str):
        raise TypeError(f"dest_path must be the path of a folder, not {dest_path!r}")
    relative = dest_path.strip("/")
    if dest_path.startswith("/"):
        logger.warning("dest_path: %s is taken to be below the folder of nodes", dest_path)
    try:
        return "/".join(parts_of(relative))
    except FileNameError as error:
        raise ValueError(f"dest_path: {error}") from None


def read_interval(name: str, value: Any) -> float:
    """Return how often to do something, in seconds from 1 to 1000; 0, as None: not again."""
    if value is None or (value == 0 and not isinstance(value, bool)):
        return 0.0
    return check_seconds(name, value, 1.0, 1000.0)


def check_needless(name: str, value: Any) -> None:
    """Accept a number of seconds for something that happens without it."""
    if value is not None:
        check_seconds(name, value, 0.0, YEAR_S)
        logger.debug("%s isn't needed: nodes and results come by themselves", name)


def check_int(name: str, value: Any) -> int:
    """Allow a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    return value


def read_label(name: Any) -> str:
    """Allow a name that people can read and type, or nothing."""
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, not {name!r}")
    if not 0 < len(name) <= LABEL_MAX or not name.isprintable():
        raise ValueError(f"name must be 1 to {LABEL_MAX} printable characters, not {name!r}")
    return name


def read_weight(weight: Any) -> float:
    """Allow a positive number."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise TypeError(f"weight must be a number, not {weight!r}")
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise ValueError(f"weight must be from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}, not {weight}")
    return float(weight)


def check_client_port(port: Any) -> None:
    """Allow any port, 0 or nothing: there is no such port here."""
    if port is None:
        return
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"client_port must be a port number, not {port!r}")
    if not 0 <= port <= PORT_MAX:
        raise ValueError(f"client_port must be a port number up to {PORT_MAX}, not {port}")


def check_seconds(name: str, value: Any, least: float = 0.0, most: float = YEAR_S) -> float:
    """Allow a number of seconds in these limits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least:g} to {most:g} seconds, not {value}")
    return float(value)


def _max_tasks(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"max_tasks_per_child must be a number of jobs or None, not {value!r}")
    if value < 1:
        raise ValueError(f"max_tasks_per_child must be 1 or more, or None, not {value}")
    return value


def _retries(name: str, value: Any) -> int:
    if not 0 <= check_int(name, value) <= RETRIES_MAX:
        raise ValueError(f"{name} must be from 0 to {RETRIES_MAX}, not {value}")
    return int(value)


def _priority(name: str, value: Any) -> int:
    if not -PRIORITY_MAX < check_int(name, value) < PRIORITY_MAX:
        raise ValueError(f"{name} must be between {-PRIORITY_MAX} and {PRIORITY_MAX}")
    return int(value)
