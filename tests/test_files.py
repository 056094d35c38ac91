"""Files are complete under their names, or not there."""

import pytest

from alpro.files import atomic_write


def test_a_file_is_replaced_when_it_is_complete_and_a_failure_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    for fails in (False, True):
        try:
            with atomic_write(path) as temporary:
                temporary.write_text("new" if fails else "old")
                assert path.exists() == fails
                assert not fails or 1 / 0
        except ZeroDivisionError:
            assert fails
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "gone" / "a.json") as temporary:
        temporary.touch()
