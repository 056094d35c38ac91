"""Planning a large corpus: the digest of its rows and files, the first time and when nothing or one file has changed.

    python benchmarks/planning.py [--rows N] [--form manifest webvid] [--folder FOLDER] [--json FILE]

Each plan is a process of its own. The baseline, "everything again", parses every row and hashes every file, as the
first plan does and as every plan would do without remembered states. The files are sparse, 1,000 bytes each, a thousand
to a folder; they are made in a temporary folder, or in --folder, where they are kept. `manifest` is a table of paths
and captions (JSON Lines), `webvid` is WebVid's table (CSV) with its videos looked up in their folders. Files of real
videos take longer the first time, by their bytes: SHA-256 takes half a second a gigabyte.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PER_FOLDER, BYTES = 1000, 1000
BASELINE = "everything again"
FORMS = ("manifest", "webvid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--form", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--folder", type=Path, help="where the files are made, or are from an earlier run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plan", nargs=2, metavar=("FORM", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        plan(arguments.plan[0], arguments.folder, arguments.rows, Path(arguments.plan[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "data"
        write_files(folder, arguments.rows)
        print(f"{arguments.rows:,} rows; load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"{'':10}{'':26}{'seconds':>9}{'processor':>11}{'peak MiB':>10}{'times faster':>14}", flush=True)
        figures = {form: measure(form, folder, arguments.rows, Path(temporary) / form) for form in arguments.form}
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": arguments.rows, **figures}, indent=1))


def write_files(folder: Path, rows: int) -> None:
    """Writes the videos and both tables, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "tables" / f"{rows}.csv").exists():
        return
    for number in range(rows):
        file = folder / "videos" / path_of(number)
        if number % PER_FOLDER == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "wb") as video:
            video.truncate(BYTES)
    (folder / "tables").mkdir(exist_ok=True)
    with open(folder / "videos" / f"{rows}.jsonl", "w") as table:
        for number in range(rows):
            table.write(json.dumps({"path": path_of(number), "captions": [caption(number)]}) + "\n")
    with open(folder / "tables" / f"{rows}.csv", "w") as table:
        table.write("videoid,contentUrl,duration,page_dir,name\n")
        for number in range(rows):
            page, name = path_of(number).split("/")
            table.write(f"{name[:-4]},https://example.org/{name},PT00H00M10S,{page},{caption(number)}\n")


def path_of(number: int) -> str:
    return f"{number // PER_FOLDER:06}/{1_000_000_000 + number}.mp4"


def caption(number: int) -> str:
    return f"clip {number}: bright clouds drift slowly over other clouds on a windy day"


def measure(form: str, folder: Path, rows: int, cache: Path) -> dict[str, dict[str, Any]]:
    """Prints and returns the figures of each plan of a corpus."""
    cache.mkdir()
    changed = folder / "videos" / path_of(rows // 2)
    figures: dict[str, dict[str, Any]] = {}
    for name in (BASELINE, "nothing changed", "one file changed"):
        if name == "one file changed":
            os.utime(changed)
        command = [sys.executable, __file__, "--folder", str(folder), "--rows", str(rows)]
        command += ["--plan", form, str(cache)]
        figures[name] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        values = figures[name]
        ratio = figures[BASELINE]["seconds"] / values["seconds"]
        print(
            f"{form:10}{name:26}{values['seconds']:9.2f}{values['processor']:11.2f}{values['peak_mib']:10.0f}"
            f"{ratio:14.1f}",
            flush=True,
        )
    assert len({values["digest"] for values in figures.values()}) == 1
    return figures


def plan(form: str, folder: Path, rows: int, cache: Path) -> None:
    """Plans a corpus in this process, and prints the figures. Memory is above that of the process before."""
    from alpro.pipeline.plan.digests import Digests, digest_data

    before, started, busy = peak_mib(), time.perf_counter(), time.process_time()
    digests = Digests(cache / "digests.sqlite")
    if form == "manifest":
        contents = digest_data(folder / "videos" / f"{rows}.jsonl", digests)
    else:
        contents = digest_data(folder / "videos", digests, {"train": folder / "tables" / f"{rows}.csv"})
    figures = {"seconds": time.perf_counter() - started, "processor": time.process_time() - busy}
    print(json.dumps({**figures, "peak_mib": peak_mib() - before, "digest": contents.all}))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
