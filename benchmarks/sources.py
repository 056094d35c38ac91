"""Time the import of tables of 10,000 to 1,000,000 rows, one video a row.

    python benchmarks/sources.py [--rows 10000 100000 1000000] [--json FILE]

Prints the processor time per row, the wall time, and the peak memory of the process, with its
imports. Each table has a process of its own. The ratio is the time per row, relative to the smallest
table.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from alpro.shards.sources.manifest import import_source

FILES_PER_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        print(json.dumps(measure_import(arguments.table)))
        return

    figures: list[dict[str, Any]] = []
    print(f"{'rows':>9} {'ms a row':>9} {'ratio':>6} {'seconds':>8} {'MiB':>6}")
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            table = write_table(Path(folder), rows)
            command = [sys.executable, __file__, "--table", str(table)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
        measured = json.loads(result.stdout)
        if measured["rows"] != rows:
            raise SystemExit(f"{measured['rows']} of {rows} rows were imported")
        measured["ms_a_row"] = 1000 * measured.pop("processor_seconds") / rows
        figures.append(measured)
        ratio = measured["ms_a_row"] / figures[0]["ms_a_row"]
        print(
            f"{rows:9,} {measured['ms_a_row']:9.3f} {ratio:6.2f} {measured['seconds']:8.1f}"
            f" {measured['peak_mib']:6.0f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def write_table(folder: Path, rows: int) -> Path:
    """Write a table with an empty file for each row, and return its path."""
    table = folder / "clips.csv"
    with open(table, "w") as file:
        print("path,caption,group", file=file)
        for number in range(rows):
            if number % FILES_PER_FOLDER == 0:
                inside = f"{number // FILES_PER_FOLDER:04d}"
                (folder / inside).mkdir()
            name = f"{inside}/clip-{number:08d}.mp4"
            (folder / name).touch()
            print(
                f"{name},person {number} walks along a street with a dog,{inside}",
                file=file,
            )
    return table


def measure_import(table: Path) -> dict[str, Any]:
    began = time.monotonic()
    before = time.process_time()
    manifest = import_source(table, table.parent / "manifests")
    return {
        "rows": manifest.about["rows"],
        "processor_seconds": time.process_time() - before,
        "seconds": time.monotonic() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
