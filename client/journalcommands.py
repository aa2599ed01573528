"""``dispy journal``: what can be done with the journal of a broker that isn't running.

The folder is the broker's state folder. Nothing is asked of any broker, and none can start there
meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dispy.protocol.commandline import SETTINGS

if TYPE_CHECKING:
    from dispy.broker.durable import KeptCluster
    from dispy.broker.offline import Findings

DAY_S = 86400.0
RETAIN_DAYS = 7.0  # as brokers do
CODES = """\b
Exit codes: 0 all is well; 1 the journal is damaged, in use, or isn't there; 2 wrong options.
"""
EXPORT_EPILOG = f"""\b
Each line is an object with "kind": node, cluster, batch (jobs that were submitted together),
result, with --payloads also job, or unreadable.
\b
Examples:
  dispy journal export ~/.local/state/dispy/broker-9700 > journal.jsonl
  dispy journal export FOLDER | jq 'select(.kind == "cluster") | .label'
\b
{CODES}
"""
FOLDER = click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER"
)


@click.group(context_settings=SETTINGS, epilog=CODES)
def journal() -> None:
    """Look after the journal of a broker that isn't running.

    FOLDER is the broker's --state-dir, which it logs when it starts.
    """


@journal.command(epilog=CODES)
@FOLDER
def check(folder: Path) -> None:
    """Look a journal through, and say what is in it."""
    from dispy.broker import offline

    with _told_in_one_line():
        findings = offline.check(folder)
        click.echo(_summary(findings))
        if findings.damage:
            raise click.ClickException("it is damaged:\n  " + "\n  ".join(findings.damage))
        click.echo("no damage")


@journal.command(epilog=EXPORT_EPILOG)
@click.option("--payloads", is_flag=True, help="Also jobs, arguments and results, as base64.")
@FOLDER
def export(folder: Path, payloads: bool) -> None:
    """Print what a journal holds as lines of JSON, as far as it can be read."""
    from dispy.broker import offline

    is_whole = True
    with _told_in_one_line():
        for line in offline.export(folder, payloads):
            is_whole &= line["kind"] != "unreadable"
            click.echo(json.dumps(line))
        if not is_whole:
            raise click.ClickException('some of it can\'t be read: see the lines "unreadable"')


@journal.command(epilog=CODES)
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=RETAIN_DAYS,
    show_default=True,
    metavar="N",
    help="Whose clients have been away for so long.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Only say which.")
@FOLDER
def prune(folder: Path, days: float, dry_run: bool) -> None:
    """Remove clusters whose clients don't come back, with their jobs and results.

    The journal's file becomes as small as it can be.
    """
    from dispy.broker import offline

    now = time.time()
    with _told_in_one_line():
        gone = offline.prune(folder, days * DAY_S, now, dry_run)
        for cluster in gone:
            click.echo(_row(cluster, offline.label(cluster), now))
        done = "would be removed" if dry_run else "removed"
        click.echo(f"{len(gone)} cluster{'' if len(gone) == 1 else 's'} {done}")


def _summary(findings: Findings) -> str:
    size, unused = findings.size_bytes / (1 << 20), findings.unused_bytes / (1 << 20)
    return (
        f"{size:.1f} MiB, {unused:.1f} MiB of it unused\n"
        f"{findings.clusters} clusters, {findings.nodes} nodes\n"
        f"{findings.jobs} jobs in {findings.batches} batches, {findings.ended} of them have ended\n"
        f"{findings.results} results that haven't been heard"
    )


def _row(cluster: KeptCluster, label: str, now: float) -> str:
    days = (now - cluster.meta.away_since) / DAY_S
    jobs = sum(batch.count for batch in cluster.batches)
    return (
        f"{cluster.id}  {label}  {cluster.meta.user}  away for {days:.1f} days, {jobs} jobs, "
        f"{sum(len(kept.message.results) for kept in cluster.results)} results"
    )


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Turn what is wrong with a journal into a line."""
    from dispy.protocol.errors import DispyError

    try:
        yield
    except BrokenPipeError:  # whoever read the output has had enough, which click deals with
        raise
    except (DispyError, OSError) as error:
        raise click.ClickException(str(error)) from None
