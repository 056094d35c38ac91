"""The real annotation files in the folder that ALPRO_CAPTIONS names (default ../shared/captions)."""

import os
from pathlib import Path

import pytest

from tests.shards.sources.test_annotations import scan

CAPTIONS = Path(os.environ.get("ALPRO_CAPTIONS", Path(__file__).parents[4] / "shared" / "captions"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CAPTIONS.is_dir(), reason=f"no annotation files in {CAPTIONS}; set ALPRO_CAPTIONS"),
]


@pytest.mark.parametrize(
    ("file", "videos", "texts"),
    [
        ("msrvtt_train9k.jsonl.gz", 8998, 179960),
        ("msrvtt_test1k.jsonl.gz", 1000, 1000),
        ("msrvtt_test1k_all_captions.jsonl.gz", 1000, 20000),
        ("didemo_test_paragraph.jsonl.gz", 1037, 1037),
        ("msrvtt_qa_test.jsonl.gz", None, 72763),
        ("msvd_qa_train.jsonl.gz", None, 30862),
        ("webvid_sample.jsonl.gz", None, 450),
        ("cc3m_sample.jsonl.gz", None, 450),
    ],
)
def test_every_line_is_read_and_grouped_by_video(file, videos, texts, tmp_path):
    rows, rejects = scan(tmp_path, {"test": CAPTIONS / file})
    assert rejects == []
    assert sum(len(row.captions) + len(row.questions) for row in rows) == texts
    assert videos is None or len(rows) == videos
    assert len({row.id for row in rows}) == len(rows)
