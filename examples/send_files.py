"""Jobs that write files and send them to this program while they run.

Each job draws a strip of a picture into a file at its node. Files arrive below the folder in
which the program runs, with the same relative path; here the strips make up a picture.
"""

from __future__ import annotations

from pathlib import Path

from node_option import command_line
from scratch_folder import scratch_folder

import dispy

WIDTH, HEIGHT = 72, 24
STRIPS = 6
SHADES = " .:-=+*#%@"


def draw(strip: int) -> str:
    """Run as a job: draw some rows, send them, return the path of the file."""
    send = dispy_send_file  # type: ignore[name-defined]  # noqa: F821  # jobs have it
    rows = range(strip * HEIGHT // STRIPS, (strip + 1) * HEIGHT // STRIPS)
    path = Path("picture", f"strip-{strip}.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(picture_row(row) + "\n" for row in rows))
    if send(str(path)) != 0:
        raise OSError(f"{path} could not be sent")
    return str(path)


def picture_row(row: int) -> str:
    """Return a row of the Mandelbrot set."""
    y = (row - HEIGHT / 2) * 2.4 / HEIGHT
    return "".join(SHADES[depth(complex(x * 3.2 / WIDTH - 2.3, y))] for x in range(WIDTH))


def depth(start: complex) -> int:
    """Return how soon the numbers that begin here grow beyond all bounds, from 0 to 9."""
    z = 0j
    for step in range(1, 46):
        z = z * z + start
        if abs(z) > 2:
            return step // 5
    return 9


def main() -> int:
    options = command_line(__doc__).parse_args()
    with scratch_folder():  # where files arrive
        with dispy.JobCluster(draw, nodes=options.nodes) as cluster:
            jobs = [cluster.submit(strip) for strip in range(STRIPS)]
            paths = [job() for job in jobs]
        failed = [job for job in jobs if job.status != dispy.DispyJob.Finished]
        picture = "" if failed else "".join(Path(path).read_text() for path in paths)
    for job in failed:
        print(f"job {job.id} failed:\n{job.exception}")
    print(picture, end="")
    right = picture.splitlines() == [picture_row(row) for row in range(HEIGHT)]
    print(f"{STRIPS} files have arrived, and make up the picture:", right)
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
