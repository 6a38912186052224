"""Files that a command writes: whole, and where they may lie."""

import os

import pytest

from limr_jax.errors import InputError
from limr_jax.storage import files


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


def test_two_texts_never_share_a_folder(tmp_path):
    texts = [
        *("ev/x.jsonl@1", "ev_x.jsonl@1", "x[:3]@1", "x[3:]@1", "x_3:_@1"),
        *("x%5B:3%5D@1", "x[:3]@11", "a b", "a_b", "a,b", "ü", "u\u0308", "\ud800"),
        *("n" * 180, "n" * 181, "n" * 4000, "n" * 4000 + "/", "n" * 181 + "/"),
        *("", ".", "..", "...", "%", "%2E", "%2E%2E", "%2E.", "../x", "%2E./x", ".x"),
    ]
    texts.append(files.folder_name("n" * 4000))
    names = [files.folder_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        (tmp_path / name).mkdir()
    assert not any(name.startswith(".") for name in names)  # `ls` shows them all
    # None leaves its folder, or is it.
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)
    assert files.folder_name("arithmetic:eval@8") == "arithmetic:eval@8"
    assert files.folder_name("ev/x.jsonl[:3]@1") == "ev%2Fx.jsonl%5B:3%5D@1"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gs://bucket/x", "--out=gs://bucket/x is not on this machine"),
        ("read", "--out read is what is read"),
        ("./folder/../read", "is what is read"),
        ("folder", "--out folder is a folder; give a file in it"),
        ("nowhere/x", "--out nowhere/x: no such folder; make it first"),
        ("pipe", "--out pipe is a pipe, a device or a link that leads nowhere"),
        ("/dev/null", "--out /dev/null is a pipe, a device or a link"),
        ("circle", "--out circle is a pipe, a device or a link that leads nowhere"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, path, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "read").write_text("")
    os.mkfifo("pipe")
    os.symlink("circle", "circle")
    with pytest.raises(InputError, match=said):
        files.output(path, None, "read")
    assert files.output("folder/new", None, "read") == files.local("folder/new", "")


def test_no_pipe_is_replaced(tmp_path):
    """Nor the one that a link leads to."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "link", "circle"):
        with pytest.raises(InputError, match="is a pipe, a device or a link that"):
            files.write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert len([*tmp_path.iterdir()]) == 3


def test_a_link_stays_a_link_to_what_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").write_text("old")
    (tmp_path / "link").symlink_to("there/file")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there/file").read_text() == "new"
    assert len([*(tmp_path / "there").iterdir()]) == 1


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("folder", "it is a folder"),
        ("file/run.json", "{here}/file is no folder"),
        ("file/a/b/run.json", "{here}/file is no folder"),
        ("link/run.json", "{here}/link is no folder"),
        ("shut/a/run.json", "no right to write in {here}/shut"),
        ("n" * 300 + "/run.json", "File name too long"),
    ],
)
def test_what_cannot_be_written_is_known_before_it_is_made(
    tmp_path, monkeypatch, path, cause
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "shut").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    may = os.access  # which says yes to root
    monkeypatch.setattr(
        os, "access", lambda x, how: may(x, how) and not str(x).endswith("shut")
    )
    with pytest.raises(InputError) as caught:
        files.check_writable(tmp_path / path)
    cause = cause.replace("{here}", str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / path} cannot be written: {cause}; give another --workdir"
    )
    files.check_writable(tmp_path / "new/folders/run.json")
    files.check_writable("gs://bucket/run.json")
    assert not (tmp_path / "new").exists()
