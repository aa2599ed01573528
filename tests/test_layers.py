"""Which folder may import which, what a pure core may import, and who may unpickle.

The rules are checked on the source text, so they hold for branches that no test runs.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "broker": {"protocol"},
    "node": {"protocol"},
    "relay": {"protocol"},
    "client": {"protocol", "broker"},  # JobCluster embeds the broker
}
PURE = [
    "relay/callers.py",
    "relay/carrying.py",
    "relay/children.py",
    "relay/connections.py",
    "relay/core.py",
    "relay/downward.py",
    "relay/engagement.py",
    "relay/introductions.py",
    "relay/news.py",
    "relay/places.py",
    "relay/trunk.py",
    "protocol/arrivals.py",
    "protocol/connections.py",
    "protocol/dials.py",
    "protocol/doubts.py",
    "protocol/events.py",
    "protocol/handshake.py",
    "protocol/introductions.py",
    "protocol/messages.py",
    "protocol/wire.py",
    "protocol/link.py",
    "protocol/exchange.py",
    "protocol/framecache.py",
    "protocol/pacing.py",
    "protocol/trunks.py",
    "protocol/guard.py",
    "protocol/keys.py",
    "protocol/payload.py",
    "protocol/blobs.py",
    "protocol/fetching.py",
    "broker/backlog.py",
    "broker/batches.py",
    "broker/blobs.py",
    "broker/checks.py",
    "broker/attaching.py",
    "broker/choices.py",
    "broker/clients.py",
    "broker/closing.py",
    "broker/core.py",
    "broker/effects.py",
    "broker/exclusive.py",
    "broker/distance.py",
    "broker/drain.py",
    "broker/durable.py",
    "broker/explain.py",
    "broker/hope.py",
    "broker/intake.py",
    "broker/jobs.py",
    "broker/journalerrors.py",
    "broker/line.py",
    "broker/matching.py",
    "broker/mishaps.py",
    "broker/naming.py",
    "broker/nodes.py",
    "broker/operation.py",
    "broker/overview.py",
    "broker/packing.py",
    "broker/placement.py",
    "broker/puts.py",
    "broker/rates.py",
    "broker/records.py",
    "broker/requests.py",
    "broker/submissions.py",
    "broker/restore.py",
    "broker/results.py",
    "broker/seen.py",
    "broker/settings.py",
    "broker/setups.py",
    "broker/sharing.py",
    "broker/standing.py",
    "broker/state.py",
    "broker/turns.py",
    "broker/unheard.py",
    "broker/warehouse.py",
    "node/conversation.py",
    "node/core.py",
    "node/duty.py",
    "node/effects.py",
    "node/endings.py",
    "node/files.py",
    "node/guests.py",
    "node/handover.py",
    "node/invariants.py",
    "node/jobwire.py",
    "node/plan.py",
    "node/processevents.py",
    "node/reports.py",
    "node/service.py",
    "node/setups.py",
    "node/spool.py",
    "node/state.py",
    "node/telling.py",
    "node/traffic.py",
    "node/watching.py",
    "client/attached.py",
    "client/core.py",
    "client/doctor.py",
    "client/effects.py",
    "client/endings.py",
    "client/line.py",
    "client/news.py",
    "client/ranges.py",
    "client/reasons.py",
    "client/rejoining.py",
    "client/reports.py",
    "client/sending.py",
    "client/state.py",
    "client/recovery.py",
    "client/status.py",
    "client/tables.py",
]
IMPURE_MODULES = {
    "asyncio",
    "datetime",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
    "zmq",
}
UNPICKLING_MODULES = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
# The job process and what it is forked from run the user's code anyway; the zygote imports
# cloudpickle for them, once. Processes of one node that run no user code exchange marshal.
MAY_UNPICKLE = {
    "node/mailboxes.py": {"marshal"},
    "node/rehearsal.py": {"pickle"},  # of the zygote, and of job processes
    "node/runner.py": {"pickle"},
    "node/template.py": {"pickle"},
    "node/values.py": {"cloudpickle", "pickle"},
    "node/zygote.py": {"cloudpickle"},
    "node/channel.py": {"marshal"},
}


def sources(*folders: str) -> list[str]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def imported(path: str) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in the file."""
    package = "dispy" if path.startswith("client/") else f"dispy.{path.split('/')[0]}"
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= imported_from(node, package)
    return names


def imported_from(node: ast.ImportFrom, package: str) -> set[str]:
    """Return what a "from" statement may import: the module, and its names as modules."""
    assert node.level <= 1, "relative imports stay in their folder"
    module = node.module or ""
    if node.level:
        module = f"{package}.{module}".rstrip(".")
    return {module} | {f"{module}.{alias.name}" for alias in node.names}


def is_of_this_project(name: str) -> bool:
    """Tell whether a layer is used; all of them may know the version."""
    return name.split(".")[0] == "dispy" and not name.startswith("dispy._version")


def layer_of(name: str) -> str:
    """Return the folder that a module dispy.x.y lies in."""
    part = name.split(".")[1] if "." in name else ""
    return part if part in MAY_IMPORT else "client"


def layers_used(path: str) -> set[str]:
    """Return the other folders of which a file imports something.

    ``from dispy import protocol`` uses protocol; it names the client's face only in passing.
    """
    names = {name for name in imported(path) if is_of_this_project(name)}
    through = {name.rpartition(".")[0] for name in names if layer_of(name) != "client"}
    return {layer_of(name) for name in names - through} - {path.split("/")[0]}


def test_no_module_of_the_client_hides_a_package() -> None:
    """``client/node.py`` would be ``dispy.node``, as the folder ``node/`` is."""
    assert not {path.stem for path in (ROOT / "client").iterdir()} & set(MAY_IMPORT)


def tops(path: str) -> set[str]:
    """Return the top-level packages that a file imports."""
    return {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize("path", sources(*MAY_IMPORT))
def test_imports_go_one_way(path: str) -> None:
    for top in tops(path):
        assert top not in MAY_IMPORT, f"say dispy.{top}, or dispy for client"
    assert layers_used(path) <= MAY_IMPORT[path.split("/")[0]]


@pytest.mark.parametrize("path", PURE)
def test_pure_modules_have_no_world(path: str) -> None:
    assert not tops(path) & IMPURE_MODULES


SHELLS = {
    "broker/__init__.py",
    "broker/bloberrands.py",
    "broker/ballast.py",
    "broker/cli.py",
    "broker/crashpoints.py",
    "broker/daemon.py",
    "broker/embedded.py",
    "broker/journal.py",
    "broker/offline.py",
    "broker/oldcommand.py",
    "broker/schema.py",
    "broker/statelock.py",
    "broker/tables.py",
}


def test_all_of_the_broker_is_pure_but_its_shells() -> None:
    assert {path for path in PURE if path.startswith("broker/")} == {*sources("broker")} - SHELLS


def test_only_what_transports_imports_zmq() -> None:
    users = {path for path in sources(*MAY_IMPORT) if "zmq" in tops(path)}
    names = ("curve", "dialling", "listeners", "sockets", "transport")
    assert users == {f"protocol/{name}.py" for name in names}


@pytest.mark.parametrize("path", sources("protocol", "broker", "node", "relay"))
def test_daemons_never_unpickle(path: str) -> None:
    assert tops(path) & UNPICKLING_MODULES <= MAY_UNPICKLE.get(path, set())


def test_the_rules_name_existing_files() -> None:
    named = {*PURE, *MAY_UNPICKLE}
    assert not {path for path in named if not (ROOT / path).exists()}
