"""Shards of video2dataset and img2dataset are decoded where they lie."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from alpro.errors import InputError
from alpro.pipeline.plan.digests import Digests, digest_data
from alpro.shards.schema import Member, Reject, Row
from alpro.shards.sources.manifest import scan_source
from alpro.stages import decode_videos
from alpro.stages.decode_videos import Config


def about(key: str, **more) -> dict:
    columns = {"url": f"https://host.example/watch?v={key}", "key": key, "status": "success"}
    return columns | {"error_message": None, "videoid": int(key.partition("_")[0]), **more}


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def downloads(sample, tmp_path) -> Path:
    """Two shards of video2dataset: three videos and two clips of one, two failed downloads, and an empty caption."""
    folder = tmp_path / "webvid"
    folder.mkdir()
    rows = [json.loads(line) for line in (sample / "clips.jsonl").read_text().splitlines()][:6]
    videos = [(sample / row["path"]).read_bytes() for row in rows]
    first: dict[str, bytes] = {}
    for key, video in zip(("000000000", "000000001", "000000003"), videos, strict=False):
        caption = "" if key.endswith("3") else f"caption  of {key}\n"
        first |= {f"{key}.mp4": video, f"{key}.txt": caption.encode()}
        first[f"{key}.json"] = json.dumps(about(key, caption=caption, split="train")).encode()
    write_shard(folder / "00000.tar", first)
    failures = [
        about(
            "000000002",
            url="https://me:pw@host.example",
            status="failed_to_download",
            error_message="HTTP Error 404: Not Found",
        ),
        about("000000004", status="failed_to_subsample", error_message="no cuts"),
    ]
    table = [about(key) for key in ("000000000", "000000001", "000000003")] + failures
    pq.write_table(pa.Table.from_pylist(table), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 5, "successes": 3}')
    second: dict[str, bytes] = {}
    for number in range(2):
        key = f"000010000_{number:03d}"
        second |= {
            f"./{key}.mp4": videos[3 + number],
            f"./{key}.json": json.dumps(about(key, caption="a cut")).encode(),
        }
        second[f"./{key}.json"] = json.dumps(about(key, caption="a cut", clips=[[0, 1]])).encode()
    write_shard(folder / "00001.tar", second)
    return folder


def test_captions_statuses_and_clips_are_read(downloads):
    records = list(scan_source(downloads))
    rows = {r.id: r for r in records if isinstance(r, Row)}
    assert {name: (row.captions, row.group or row.name, row.split) for name, row in rows.items()} == {
        "000000000": (("caption of 000000000",), "000000000", "train"),
        "000000001": (("caption of 000000001",), "000000001", "train"),
        "000000003": ((), "000000003", "train"),
        "000010000_000": (("a cut",), "000010000", ""),
        "000010000_001": (("a cut",), "000010000", ""),
    }
    assert rows["000000001"].meta == {"videoid": 1, "url": "https://host.example/watch?v=000000001"}
    assert rows["000000001"].file_name == "000000001.mp4"
    rejects = {r.id: r for r in records if isinstance(r, Reject)}
    assert {name: (r.reason, r.detail) for name, r in rejects.items()} == {
        "000000002": ("not fetched", "failed_to_download: HTTP Error 404: Not Found"),
        "000000004": ("not fetched", "failed_to_subsample: no cuts"),
    }
    assert [rejects[name].path for name in sorted(rejects)] == ["", "https://host.example/watch?v=000000004"]


def test_members_are_decoded_as_the_same_files_in_a_folder(downloads, tmp_path, inline_pool, resources):
    config = Config(frames=4, size=32, max_reject_share=0.5)
    out, other = tmp_path / "out", tmp_path / "other"
    outcome = decode_videos.run(config, {"data": downloads}, out, resources)
    assert (outcome.counts["items"], outcome.counts["samples"], outcome.counts["rejected"]) == (7, 4, 3)
    reasons = {row["id"]: row["reason"] for row in pq.read_table(out / "rejects.parquet").to_pylist()}
    assert reasons == {"000000002": "not fetched", "000000004": "not fetched", "000000003": "no text"}
    assert not list(out.rglob("*.mp4"))
    assert not list(out.rglob(".fetched.*"))

    loose = tmp_path / "loose"
    loose.mkdir()
    rows = [row for row in scan_source(downloads) if isinstance(row, Row)]
    lines = []
    for row in rows:
        data = row.path.read_bytes()[row.member.offset :][: row.member.size]
        (loose / row.file_name).write_bytes(data)
        lines.append(
            {"path": row.file_name, **row.model_dump(include={"id", "captions", "split"}), **row.meta}
            | {"group": row.group or row.name}
        )
    (loose / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    decode_videos.run(config, {"data": loose / "manifest.jsonl"}, other, resources)
    assert [p.read_bytes() for p in sorted(out.glob("*.tar"))] == [p.read_bytes() for p in sorted(other.glob("*.tar"))]


def test_shards_at_a_url_give_the_same_rows(downloads, memory):
    for file in downloads.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/bucket/corpus/{file.name}", file.read_bytes())
    here, there = list(scan_source(downloads)), list(scan_source(memory))
    assert [record.id for record in here] == [record.id for record in there]
    member = there[0].member
    assert there[0].path == f"{memory}/00000.tar"
    with decode_videos.fetched(there[0], 1 << 30, downloads) as path:
        assert path.read_bytes() == (downloads / "00000.tar").read_bytes()[member.offset :][: member.size]
        assert path.suffix == ".mp4"


def test_images_of_img2dataset(tmp_path, inline_pool, resources):
    (tmp_path / "cc3m").mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "JPEG")
    members = {}
    for number in range(3):
        key = f"00000000{number}"
        members |= {
            f"{key}.jpg": buffer.getvalue(),
            f"{key}.txt": b"red",
            f"{key}.json": json.dumps(about(key)).encode(),
        }
    write_shard(tmp_path / "cc3m" / "00000.tar", members)
    outcome = decode_videos.run(Config(size=16), {"data": tmp_path / "cc3m"}, tmp_path / "out", resources)
    assert (outcome.counts["images"], outcome.counts["rejected"]) == (3, 0)


def test_the_digest_is_that_of_the_shards(downloads, tmp_path):
    digests = Digests(tmp_path / "digests.sqlite")
    before = digest_data(downloads, digests)
    moved = downloads.rename(tmp_path / "moved")
    assert digest_data(moved, digests) == before
    assert digest_data(moved, digests, ask=False).here == before.here
    data = bytearray((moved / "00001.tar").read_bytes())
    data[600] ^= 1  # in a video
    (moved / "00001.tar").write_bytes(data)
    assert digest_data(moved, digests, ask=False).here != before.here


def test_a_shard_that_ends_early_is_a_reject(downloads, tmp_path, inline_pool, resources):
    shard = downloads / "00000.tar"
    last = [row for row in scan_source(downloads) if isinstance(row, Row)][2]
    shard.write_bytes(shard.read_bytes()[: last.member.offset + 100])
    records = [r for r in scan_source(downloads) if r.id.startswith("00000")]
    assert {r.id for r in records if isinstance(r, Row)} == {"000000000", "000000001"}
    assert [(r.id, r.reason) for r in records if isinstance(r, Reject)] == [
        ("00000.tar", "unreadable"),
        ("000000003", "unreadable"),
        ("000000002", "not fetched"),
        ("000000004", "not fetched"),
    ]
    shard.write_bytes(b"no tar")
    (reject,) = (r for r in scan_source(downloads) if r.id == "00000.tar")
    assert (reject.reason, reject.detail) == (
        "unreadable",
        "damaged at byte 0: not a header (truncated header); 0 samples before it",
    )


def test_a_member_beyond_the_end_of_its_shard_is_a_reject(downloads):
    member = Member(name="a.mp4", offset=512, size=1 << 30)
    whole = Row(id="a", path=downloads / "00000.tar", member=member, kind="video")
    for limit, reason in ((1 << 40, r"unreadable: .*ends inside a\.mp4"), (100, "too large")):
        with pytest.raises(decode_videos.DecodeError, match=reason), decode_videos.fetched(whole, limit, downloads):
            pass
    assert not list(downloads.glob(".fetched.*"))


def test_raw_shards_as_existing_shards_get_a_hint(downloads):
    from alpro.shards.writer import index_shard

    with pytest.raises(InputError, match="set `data` instead of `shards`"):
        index_shard(downloads / "00000.tar")


def test_a_failed_download_is_a_reject_even_with_media(tmp_path):
    members = {
        "0.mp4": b"half",
        "0.txt": b"a dog",
        "0.json": json.dumps(about("0", status="failed_to_subsample")).encode(),
    }
    members |= {"1.mp4": b"1", "1.json": json.dumps(about("1", caption="a cat")).encode()}
    write_shard(tmp_path / "00000.tar", members)
    reject, row = scan_source(tmp_path)
    assert (reject.id, reject.reason, reject.detail) == ("0", "not fetched", "failed_to_subsample")
    assert (row.id, row.captions) == ("1", ("a cat",))
