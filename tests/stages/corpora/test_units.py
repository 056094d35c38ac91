"""The folder of a corpus that is being made."""

from alpro.stages.corpora.units import open_parts


def test_temporary_files_and_folders_of_killed_processes_are_deleted(tmp_path, resources):
    parts = tmp_path / "out" / "parts"
    (parts / ".manifest.1.part").mkdir(parents=True)
    for name in (".a.tar.1.part", "parts/.fetched.1.mp4", "parts/.manifest.1.part/manifest.parquet", "a.tar"):
        (tmp_path / "out" / name).write_bytes(b"x")
    assert open_parts(tmp_path / "out", resources) == parts
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["a.tar", "parts"]
