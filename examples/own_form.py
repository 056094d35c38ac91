"""Read captions from a table whose columns have names of their own.

    python examples/own_form.py VIDEOS TABLE

The table is a CSV such as

    Datei,Kurztext,Langtext
    a,a dog,a brown dog runs in the snow

A configuration has the same keys in `[corpora.NAME.columns]` (docs/prepare_data.md), also on the
command line: `alpro run --set corpora.data.columns.file=...`. The program prints the items that
stages read.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alpro.shards.sources.form import Columns
from alpro.shards.sources.manifest import import_source

COLUMNS = Columns(file="{Datei}.mp4", captions=("Kurztext", "Langtext"))


def main(videos: Path, table: Path) -> None:
    with TemporaryDirectory() as cache:
        # Without names of splits, every row is in the split "train".
        tables = {"train": [table]}
        manifest = import_source(videos, Path(cache), tables, columns=COLUMNS)

        for batch in manifest.batches(["id", "path", "captions"]):
            for row in batch.to_pylist():
                print(
                    f"{row['id']}: {Path(row['path']).name}: {' | '.join(row['captions'])}"
                )
        for reject in manifest.rejects().to_pylist():
            print(f"rejected: {reject['path']}: {reject['reason']}: {reject['detail']}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
