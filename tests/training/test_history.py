import codecs
import math

import pytest

from dlqat_tf.training.history import mend_history, read_history

HEADER = "epoch,accuracy,loss,seconds,val_accuracy,val_loss\n"


def row(epoch, accuracy=0.5):
    return f"{epoch},0.4,1.25,3.0,{accuracy},1.5\n"


@pytest.fixture
def history(tmp_path):
    return tmp_path / "float" / "history.csv"


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        (HEADER + row(0) + row(1), [0, 1]),
        (HEADER + row(0) + row(1)[:-1], [0]),  # 1.5 may have been 1.53
        (HEADER + row(0) + "1,0.4,1.2", [0]),
        (HEADER + row(0) + "1,0.4,1.2\n" + row(2), [0, 2]),
        (HEADER + row(0) + "1,0.4" + row(2), [0]),
        (HEADER + "\0\0\0\n" + row(1), [1]),
        (HEADER + row(1) + row(0), [0, 1]),
        (codecs.BOM_UTF8 + (HEADER + row(0)).replace("\n", "\r\n").encode(), [0]),
        (HEADER[:20], []),
        (HEADER[6:] + row(0), []),
        (b"\xff\xfe" * 20, []),
        ("", []),
    ],
)
def test_only_whole_rows_are_read(history, text, epochs):
    write(history, text)
    assert [row["epoch"] for row in read_history(history)] == epochs


def test_of_an_epoch_that_ran_twice_the_last_row_counts(history):
    write(history, HEADER + row(0, 0.1) + row(1, 0.2) + row(1, 0.3))
    assert [row["val_accuracy"] for row in read_history(history)] == [0.1, 0.3]
    assert read_history(history.with_name("none.csv")) == []


@pytest.mark.parametrize(
    ("text", "kept", "lost"),
    [
        (HEADER + row(0) + row(1), HEADER + row(0) + row(1), []),
        (HEADER + row(0) + row(1) + row(2), HEADER + row(0) + row(1), []),  # killed in epoch 2
        (HEADER + row(0) + "1,0.4,1.", HEADER + row(0), [1]),
        (HEADER + row(1), HEADER + row(1), [0]),
        ("", "", [0, 1]),
    ],
)
def test_the_next_row_has_a_line_of_its_own(history, text, kept, lost):
    write(history, text)
    assert mend_history(history, 2) == lost
    assert history.read_text() == kept
    with history.open("a") as file:
        file.write(row(2))
    assert 2 in [row["epoch"] for row in read_history(history)] or not kept


def test_a_history_without_a_header_is_kept_aside(history):
    write(history, HEADER[5:] + row(0))
    assert mend_history(history, 1) == [0]
    assert history.read_text() == ""
    assert history.with_suffix(".damaged").read_text() == HEADER[5:] + row(0)


def test_a_lost_history_is_noticed(history):
    history.parent.mkdir()
    assert mend_history(history, 3) == [0, 1, 2]
    assert mend_history(history, 0) == []
    assert not history.exists()


def test_a_history_ahead_of_the_checkpoint_is_refused(history):
    text = HEADER + row(0) + row(1) + row(2)
    write(history, text)
    with pytest.raises(ValueError, match=r"history\.csv has 3 epochs, the checkpoint in .* only 1"):
        mend_history(history, 1)
    assert history.read_text() == text


def test_result_of_a_history_with_a_gap():
    from dlqat_tf.training.recipe import Recipe
    from dlqat_tf.training.results import summarise

    rows = [
        dict(epoch=float(i), val_accuracy=0.1 * i, seconds=2.0, loss=1.0, accuracy=0.0, val_loss=1)
        for i in range(3)
    ]
    whole = summarise(Recipe(), {"float": rows}, {"commit": "abc"})
    assert (whole.accuracy, whole.best_accuracy, whole.seconds) == (0.2, 0.2, 6.0)
    gap = summarise(Recipe(), {"float": [rows[0], rows[2]]}, {})
    assert (gap.accuracy, gap.best_accuracy, gap.seconds) == (0.2, None, None)
    assert (gap.stages[0]["epochs"], gap.stages[0]["unrecorded_epochs"]) == (3, 1)
    measured = summarise(Recipe(), {"float": [*rows[:2], rows[2] | {"seconds": math.nan}]}, {})
    assert (measured.best_accuracy, measured.seconds) == (0.2, None)
