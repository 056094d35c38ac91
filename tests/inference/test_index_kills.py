"""Writers of an index are killed in the middle of their work, beside a reader."""

import random
import subprocess
import sys

import numpy as np
import pytest

from alpro.inference.index import Index, IndexSettings

SIZE = 16
WRITERS = 4
ROUNDS = 5
# Writes ten rows at a time, some of them again, and prints each number that is committed.
WRITER = """
import sys
import numpy as np
from alpro.inference.index import Index
from alpro.inference.index import EMPTY

index = Index.open(sys.argv[1])
for first in range(int(sys.argv[2]), sys.maxsize, 5):
    numbers = range(first, first + 10)
    vectors = [np.full(16, number, np.float32) for number in numbers]
    rows = [
        EMPTY | {"key": f"{n}", "id": f"{n}", "path": f"/{n}.mp4", "identity": "", "vector": vector}
        for n, vector in zip(numbers, vectors)
    ]
    index.write(rows)
    if first % 4 == 0:
        index.optimize()
    print(*numbers, flush=True)
"""


@pytest.mark.long
def test_killed_writers_lose_no_row_and_leave_none_twice(tmp_path):
    place = str(tmp_path / "index")
    index = Index.create(place, IndexSettings(model="", digest=""), SIZE, {})
    draw = random.Random(0)
    committed = set()

    def read(writer):
        committed.update(writer.stdout.readline().split())

    for turn in range(ROUNDS):
        writers = []
        for number in range(WRITERS):
            first = 100_000 * number + 100 * turn
            command = [sys.executable, "-c", WRITER, place, str(first)]
            writers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for writer in writers:
            for _ in range(draw.randint(1, 5)):
                read(writer)
        for writer in writers:
            writer.kill()
            committed.update(writer.communicate()[0].split())

        rows = index.rows()  # a reader that was open before
        keys = [row["key"] for row in rows]
        assert len(keys) == len(set(keys))
        assert committed <= set(keys)
        assert all(row["id"] == row["key"] for row in rows)

    for key in draw.sample(sorted(committed), 20):
        np.testing.assert_array_equal(
            index.embedding(key), np.full(SIZE, int(key), np.float32)
        )
    assert {row["key"] for row in Index.open(place).rows()} == set(keys)
