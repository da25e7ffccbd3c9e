import os
import threading
import time

import pytest

from dlqat_tf import _stderr


def test_only_notes_are_left_out(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    note, error = b"I0000 00:00:1.2 1 port.cc:153] on\n", b"E0000 00:00:1.2 1 file.cc:1] wrong\n"
    with _stderr.without_notes():
        os.write(2, note + error)
    assert capfd.readouterr().err == error.decode()
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with _stderr.without_notes():
        os.write(2, note + error)
    assert capfd.readouterr().err == (note + error).decode()


def test_what_is_silenced_is_written_at_level_0_only(capfd, monkeypatch):
    for level, expected in (("1", "after\n"), ("0", "inside\nafter\n")):
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
        with _stderr.silenced():
            os.write(2, b"inside\n")
        os.write(2, b"after\n")
        assert capfd.readouterr().err == expected


def test_threads_divert_the_standard_error_one_after_the_other(capfd):
    entered, said = threading.Barrier(2), {}

    def work(name):
        entered.wait()
        with _stderr.diverted() as held:
            os.write(2, name)
            time.sleep(0.1)
            said[name] = held()

    threads = [threading.Thread(target=work, args=(name,)) for name in (b"first", b"second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {b"first": b"first", b"second": b"second"}
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_a_standard_error_that_is_closed_stays_so(monkeypatch):
    def closed(_):
        raise OSError("Bad file descriptor")

    monkeypatch.setattr(os, "dup", closed)
    for diverting in (_stderr.diverted, _stderr.without_notes, _stderr.silenced):
        with diverting() as held:
            assert held is None or held() == b""


def test_what_was_held_is_passed_on_after_an_error(capfd, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")

    def fail():
        os.write(2, b"why")
        raise KeyError

    with pytest.raises(KeyError), _stderr.without_notes():
        fail()
    assert capfd.readouterr().err == "why"
