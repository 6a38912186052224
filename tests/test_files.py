"""Files that a command writes: whole, and where they may lie."""

import pytest

from limr_jax import files
from limr_jax.errors import InputError


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "kept.json"
    files.write_text(path, "old \ud800")
    assert path.read_bytes() == b"old \\ud800"
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old \\ud800"
    with pytest.raises(InputError, match="kept.json/x: cannot be written .*check path"):
        files.write_text(path / "x", "its folder is a file")
    files.write_rows(path, [{"a": "ü"}, {"a": None}])
    assert path.read_text("utf-8") == '{"a": "ü"}\n{"a": null}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://bucket/x", "--out=gs://bucket/x is not on this machine"),
        ("read", "--out read is what is read"),
        ("./folder/../read", "is what is read"),
        ("folder", "--out folder is a folder; give a file in it"),
        ("nowhere/x", "--out nowhere/x: no such folder; make it first"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "read").write_text("")
    with pytest.raises(InputError, match=said):
        files.output(path, None, "read")
    assert files.output("folder/new", None, "read") == files.local("folder/new", "")
