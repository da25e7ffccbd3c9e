import os

import pytest

from dlqat_tf.report import check_target, counted


def test_a_report_takes_no_place_of_another_file(tmp_path):
    model, report = tmp_path / "model.keras", tmp_path / "report.json"
    report.symlink_to(model)
    for path in (model, report, tmp_path / "x" / ".." / "model.keras"):
        with pytest.raises(FileExistsError, match="which the same command reads or writes"):
            check_target(path, force=True, beside=[None, model])
    check_target(tmp_path / "other.json", force=False, beside=[None, model])


def test_the_folder_of_a_report_is_that_of_what_a_link_points_to(tmp_path):
    (tmp_path / "report.json").symlink_to("missing/report.json")
    with pytest.raises(FileNotFoundError, match=r"an existing folder, found none.*missing"):
        check_target(tmp_path / "report.json", force=True)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_report_is_a_regular_file(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(OSError, match=r"Expected the name of a .*file, received .*x, which is a"):
        check_target(tmp_path / "x", force=True)


def test_counts_have_their_plural():
    counts = [counted(number, "epoch") for number in (0, 1, 2, 2000)]
    assert counts == ["0 epochs", "1 epoch", "2 epochs", "2,000 epochs"]
