"""Files and folders that are there whole or not at all."""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from datamodules import storage
from datamodules.errors import InputError
from datamodules.storage import (
    commit_folder,
    content_key,
    file_sha256,
    files_sha256,
    new_folder,
    require_new,
    write_atomic,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old\n")
    write_atomic(path, "new µ\n")
    assert path.read_text() == "new µ\n"
    assert names(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_dies_leaves_the_old_file(tmp_path, monkeypatch, moment, error):
    path = tmp_path / "a.txt"
    write_atomic(path, "old\n")

    def die(*_):
        raise error

    if moment == "write":
        text = "half\udcff"  # cannot be encoded: the write itself fails
        error = UnicodeEncodeError
    else:
        text = "new\n"
        target = (os, "fsync") if moment == "fsync" else (Path, "replace")
        monkeypatch.setattr(*target, die)
    with pytest.raises(error):
        write_atomic(path, text)
    assert path.read_text() == "old\n"
    assert names(tmp_path) == ["a.txt"]


def full_on_write(descriptor, mode):
    os.close(descriptor)
    return Path("/dev/full").open(mode)


def full_on_fsync(_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("call", "fails"), [("fdopen", full_on_write), ("fsync", full_on_fsync)])
def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch, call, fails):
    path = tmp_path / "a.txt"
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(path, "new\n")
    assert caught.value.filename == str(path)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_with_the_folder_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out"):
        Path("/dev/full").write_bytes(b"x")
    assert caught.value.filename == str(tmp_path / "out")
    assert names(tmp_path) == []


def test_text_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A power cut between rename and write-back would leave an empty file under the name."""
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(("fsync", os.fstat(fd).st_size)), fsync(fd))[1]
    )
    monkeypatch.setattr(
        Path, "replace", lambda self, new: (events.append("replace"), replace(self, new))[1]
    )
    write_atomic(tmp_path / "a.txt", "x" * 100)
    assert events[0] == ("fsync", 100)
    assert events[1] == "replace"
    assert len(events) == 3  # the folder's entry follows


def test_write_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": None})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, 2.5], "a": None}
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert (tmp_path / "a.json").read_text() == text


def test_what_is_there_is_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "file.png").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for there in ("", "file.png", "link"):
        with pytest.raises(InputError, match="exists; choose another folder"):
            require_new(tmp_path / there)
    for below in ("file.png/x", "file.png/x/y", "link/x"):
        with pytest.raises(InputError, match=r"(file\.png|link) is no folder; choose another"):
            require_new(tmp_path / below)
    monkeypatch.chdir(tmp_path)
    for new in ("x", "x/y", tmp_path / "x" / "y"):
        require_new(Path(new))


def test_commit_folder(tmp_path):
    folder = tmp_path / "deep" / "set"
    with commit_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        assert not folder.exists()
        assert temporary.parent == folder.parent  # the same disk: a rename, not a copy
    assert (folder / "inner" / "a").read_text() == "1"
    assert names(folder.parent) == ["set"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_commit_folder_leaves_nothing_on_an_exception(tmp_path, error):
    def write():
        with commit_folder(tmp_path / "set") as temporary:
            (temporary / "a").write_text("1")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == []


def test_commit_folder_keeps_what_another_process_finished(tmp_path):
    with commit_folder(tmp_path / "set") as temporary:
        (temporary / "a").write_text("late")
        with commit_folder(tmp_path / "set") as other:
            (other / "a").write_text("first")
    assert (tmp_path / "set" / "a").read_text() == "first"
    assert names(tmp_path) == ["set"]


def test_files_written_for_the_owner_alone_are_for_all(tmp_path):
    with commit_folder(tmp_path / "set") as temporary:
        (temporary / "a").touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "set" / "a").stat().st_mode) == 0o644


def test_what_another_command_made_meanwhile_is_not_taken_for_ones_own(tmp_path):
    out = tmp_path / "new" / "out"

    def make_both():
        with new_folder(out) as ours:
            (ours / "a").write_text("ours")
            with new_folder(out) as theirs:
                (theirs / "a").write_text("theirs")

    with pytest.raises(InputError, match="out: another command made it meanwhile"):
        make_both()
    assert (out / "a").read_text() == "theirs"
    assert names(tmp_path / "new") == ["out"]
    with pytest.raises(InputError, match="out: exists"), new_folder(out):
        pass


def test_parents_that_were_made_for_nothing_go_too(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="no"), commit_folder(tmp_path / "there" / "a" / "b" / "c"):
        raise ValueError("no")
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_commit_folder_fails_where_a_file_has_the_name(tmp_path):
    (tmp_path / "set").write_text("a file")
    with pytest.raises(OSError, match="set"), commit_folder(tmp_path / "set") as temporary:
        (temporary / "a").write_text("1")
    assert names(tmp_path) == ["set"]


def test_a_place_that_takes_no_file_is_told_by_the_name_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as told:
        write_atomic(tmp_path / "gone" / "a.txt", "text")
    assert told.value.filename == str(tmp_path / "gone" / "a.txt")
    # No folder can be made there, by anyone.
    with pytest.raises(FileNotFoundError) as told, commit_folder(Path("/proc/set")):
        pass
    assert told.value.filename == "/proc/set"


def test_content_key_is_frozen():
    """The hash names folders and runs: a change would orphan everything that is stored."""
    content = {"b": [1, 2.5, None, True], "a": "µ"}
    assert content_key(content) == content_key({"a": "µ", "b": [1, 2.5, None, True]})
    text = '{"a":"\\u00b5","b":[1,2.5,null,true]}'
    assert content_key(content) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert content_key(content) == "f8eab449aa9aa76d"
    assert content_key({}) == "44136fa355b3678a"
    assert content_key([1]) != content_key(["1"])
    assert content_key((1, 2)) == content_key([1, 2])


@pytest.mark.parametrize("content", [float("nan"), {"a": Path("x")}, {1, 2}])
def test_content_key_takes_plain_values_only(content):
    with pytest.raises((TypeError, ValueError)):
        content_key(content)


def test_file_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    assert file_sha256(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    (tmp_path / "c").write_bytes(b"abc")
    pair = files_sha256(tmp_path / "a", tmp_path / "b")
    assert pair == files_sha256(tmp_path / "c", tmp_path / "b")
    assert pair != files_sha256(tmp_path / "b", tmp_path / "a")
    assert pair != files_sha256(tmp_path / "a")


def test_everything_in_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    fsync_path = storage.fsync_path
    monkeypatch.setattr(
        storage,
        "fsync_path",
        lambda path: (synced.append((path.name, (tmp_path / "set").exists())), fsync_path(path)),
    )
    with commit_folder(tmp_path / "set") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("1")
        (temporary / "b").write_text("2")
    before = {name for name, renamed in synced if not renamed}
    assert {"a", "b", "inner"} < before
    assert synced[-1] == (tmp_path.name, True)
