import errno
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from dlqat_tf._host import (
    check_folder,
    check_readable,
    clear_partial,
    read_object,
    reason_of,
    replacing,
    write_whole,
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("{{function_node __wrapped__SaveV2_device_/job:a}} x; full [Op:SaveV2] name: ", "x; full"),
        ("x; full\n\t [[node]]", "x; full"),
        (" \n", "ValueError"),
    ],
)
def test_a_reason_is_without_tensorflows_own_source(message, reason):
    assert reason_of(ValueError(message)) == reason


def test_a_link_stays_one(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_text("one")
    (tmp_path / "link").symlink_to("big/file")
    write_whole(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "big" / "file").read_text() == "two"


def test_what_is_written_goes_by_the_ending_that_was_given(tmp_path):
    (tmp_path / "ab12").write_bytes(b"")
    (tmp_path / "numbers.npz").symlink_to("ab12")
    with replacing(tmp_path / "numbers.npz") as temporary:
        np.savez(temporary, two=2)
    assert np.load(tmp_path / "ab12")["two"] == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ab12", "numbers.npz"]


def test_links_to_each_other_are_replaced(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    write_whole(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "text"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(tmp_path, make):
    make(tmp_path / "x")
    before = stat.S_IFMT((tmp_path / "x").stat().st_mode)
    with pytest.raises(OSError, match=r"Expected the name of a .*file, received .*x, which is a"):
        write_whole(tmp_path / "x", "text")
    assert stat.S_IFMT((tmp_path / "x").stat().st_mode) == before
    assert [each.name for each in tmp_path.iterdir()] == ["x"]


def test_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(OSError, match=r"x is a device or a pipe, which cannot be read twice: copy"):
        check_readable(tmp_path / "x")
    check_readable(tmp_path)  # a SavedModel
    check_readable(tmp_path / "missing")  # whoever reads it says so


def test_only_what_a_killed_process_of_this_host_left_is_removed(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("old")
    code = (
        "import os, signal, sys; from dlqat_tf._host import replacing\n"
        "with replacing(sys.argv[1]) as half:\n"
        "    half.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    here = left.name[len(".a[1].txt.partial-") :].partition("-")[0]
    others = [".a[1].txt.mine", ".a1.txt.partial-x", left.name.replace(here, "00000000")]
    for name in others:
        (tmp_path / name).write_text("kept")
    with replacing(path) as writing:
        writing.write_text("new")
        clear_partial(path)
        assert not left.exists()
    assert path.read_text() == "new"
    assert sorted(each.name for each in tmp_path.glob(".*")) == sorted(others)


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"[1]", b"\xff", b'{"b": 1}', b"NaN", b"[" * 99_999]
)
def test_an_object_that_is_none(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged: delete it\.$"):
        read_object(tmp_path / "x.json", "delete it", "a")
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "x.json", "delete it", "a") == {"a": 1}


def test_a_full_disk_is_named(tmp_path):
    def fill():
        raise OSError(errno.ENOSPC, "No space left on device")

    named = f"No space left on device: '{tmp_path}/x.json'"
    with pytest.raises(OSError, match=named), replacing(tmp_path / "x.json"):
        fill()
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(OSError, match=rf"received {path}, where {tmp_path}/file is a file"):
            check_folder(path)
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "one")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
