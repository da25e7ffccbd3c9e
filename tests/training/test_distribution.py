import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf.training import data, distribution, stages
from dlqat_tf.training.data import Shard
from dlqat_tf.training.distribution import Replicas, replicas
from dlqat_tf.training.history import read_history
from dlqat_tf.training.recipe import Recipe

TINY = Recipe(
    dataset="digits",
    augment=("crop", "flip"),
    width=2,
    stages=1,
    epochs=3,
    images_per_epoch=320,
    batch_size=16,
    learning_rate=0.02,
    reference_batch=16,
    lr_warmup_epochs=0.0,
)


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process):
    """Return what a process printed, when it has ended well."""
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    return output


def test_one_process_is_the_default():
    with replicas("none") as one:
        assert (one.count, one.is_chief, one.are_workers) == (1, True, False)
        assert (one.any(True), one.any(False)) == (True, False)
        assert one.texts("é") == ["é"]
        assert one.distribute(lambda shard: shard) == Shard(0, 1)
        one.check(7)


@pytest.mark.parametrize(
    "config",
    [
        *("", "{", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}'),
        *(
            json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            for cluster, index in [
                ({"worker": ["a:1", "b:1"]}, 2),
                ({"worker": ["a:1", "b:1"]}, True),
                ({"worker": ["a:1", "b:1"]}, 0.5),
                ({"worker": ["a:1", "a:1"]}, 0),
                ({"worker": ["a", "b"]}, 0),
                ({"worker": [1, 2]}, 0),
                ({"worker": "a:1"}, 0),
                ({"worker": ["a:1"], "chief": ["b:1"]}, 0),
            ]
        ),
    ],
)
def test_workers_need_to_know_each_other(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with (
        pytest.raises(ValueError, match=r'TF_CONFIG to name all workers.*"index": 0') as error,
        replicas("multiworker"),
    ):
        pass
    assert repr(config) in str(error.value)


@pytest.fixture
def fresh():
    """No strategy of a test is another one's."""
    distribution._started.cache_clear()
    yield
    distribution._started.cache_clear()


def test_a_worker_says_whom_it_waits_for_and_can_be_ended(fresh, monkeypatch, capsys):
    cluster = {"worker": ["a:1", "b:1", "c:1"]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def waits():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as TensorFlow's own handler
        return tf.distribute.get_strategy()

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", waits)
    with replicas("multiworker"):
        pass
    printed = capsys.readouterr().out
    assert printed == "worker 1 waits for a:1, c:1 (Ctrl-C ends it, SIGTERM does not)\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (tf.errors.UnknownError, ValueError, r"Received: a:1 \(Could not start\): end what runs"),
        (tf.errors.AbortedError, distribution.WorkerLost, "start all workers again"),
    ],
)
def test_a_worker_that_cannot_join(fresh, monkeypatch, error, expected, message):
    config = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))

    def fails():
        raise error(None, None, "Could not start\nmore lines")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", fails)
    with pytest.raises(expected, match=message), replicas("multiworker"):
        pass


def test_a_tpu_that_does_not_exist(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(ValueError, match="Expected a TPU"), replicas("tpu"):
        pass


def test_a_lost_worker_is_one_sentence(monkeypatch):
    monkeypatch.setattr(distribution, "_started", lambda name: tf.distribute.get_strategy())
    gone = tf.errors.UnavailableError(None, None, "Connection reset by peer")
    with (
        pytest.raises(distribution.WorkerLost, match="start all workers again"),
        replicas("multiworker"),
    ):
        raise gone
    with pytest.raises(tf.errors.UnavailableError), replicas("none"):  # no worker is missing there
        raise gone


@pytest.mark.parametrize(
    ("count", "batch_size", "images", "expected"),
    [(1, 64, 65, 64), (4, 64, 130, 60), (4, 64, 132, 64), (4, 64, 128, 64), (2, 2, 5, None)],
)
def test_no_part_of_a_test_batch_is_empty(monkeypatch, count, batch_size, images, expected):
    # 130 = 2 * 64 + 2 leaves two of four replicas without an image; 130 = 2 * 60 + 10 does not.
    monkeypatch.setattr(Replicas, "count", count)
    some = Replicas(tf.distribute.get_strategy())
    if expected is None:
        with pytest.raises(ValueError, match="one test image for each of 2 replicas"):
            some.test_batch_size(batch_size, images)
    else:
        assert some.test_batch_size(batch_size, images) == expected


def test_replicas_share_a_batch_equally(monkeypatch):
    monkeypatch.setattr(Replicas, "count", 4)
    with pytest.raises(ValueError, match=r"multiple of their number, 4\. Received: 18"):
        Replicas(tf.distribute.get_strategy()).check(18)


def test_a_batch_is_cut_in_order():
    batches = tf.data.Dataset.range(8).batch(5).map(lambda x: (x, -x))
    parts = [first.tolist() for first, _ in distribution._split(batches, 2).as_numpy_iterator()]
    assert parts == [[0, 1], [2, 3, 4], [5], [6, 7]]
    whole = tf.data.Dataset.range(8).batch(4, drop_remainder=True)
    pairs = tf.data.Dataset.zip((whole, whole))
    assert [each.shape for each in distribution._split(pairs, 2).element_spec] == [(2,), (2,)]
    assert distribution._split(whole, 1) is whole


MIRRORED = """
import dataclasses, json, sys
import dlqat_tf, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from dlqat_tf.training import data, fitting, starting
from dlqat_tf.training.checkpoints import Position
from dlqat_tf.training.distribution import current, replicas
from dlqat_tf.training.recipe import Recipe

settings = json.loads(sys.argv[1])
settings["augment"] = tuple(settings["augment"])
images = data.load("digits")


def losses_of(**changes):
    recipe = Recipe(**(settings | changes))
    stage = starting.stages_of(recipe)[-1]
    model = starting.build_model(recipe, images, stage)
    fitting.compile_model(recipe, stage, model, 20)
    train = current().distribute(
        lambda shard: fitting.train_batches_of(recipe, images, Position(0, 0), shard)
    )
    losses = [model.fit(train, steps_per_epoch=1, verbose=0).history["loss"][0] for _ in range(3)]
    accuracy = fitting.evaluate(recipe, images, model)[1]
    return model, losses, accuracy


report = {}
for sync in (True, False):
    one = losses_of(sync_batch_norm=sync)[1]
    with replicas("mirrored") as two:
        assert two.count == 2 and two.is_chief and not two.are_workers
        model, losses, accuracy = losses_of(sync_batch_norm=sync)
        apart = [
            variable.name
            for variable in model.variables
            if not np.array_equal(*(each.numpy() for each in variable.values))
        ]
        two.agree(model)
        still = sum(
            not np.array_equal(*(each.numpy() for each in variable.values))
            for variable in model.variables
        )
    report[str(sync)] = dict(
        one=one, two=losses, apart=apart, still=still, right=accuracy * images.test_count
    )
print("REPORT", json.dumps(report))
"""


def test_replicas_train_as_one_device_does():
    recipe = replace(TINY, weight_bits=8, activation_bits=8, method="lsq")
    settings = json.dumps(recipe.plain() | {"output": None})
    report = json.loads(said(start(MIRRORED, settings)).split("REPORT")[1])
    for is_synchronized, each in ((True, report["True"]), (False, report["False"])):
        assert each["right"] == pytest.approx(round(each["right"]), abs=1e-3)  # of 360, each once
        assert each["still"] == 0
        if is_synchronized:
            assert each["two"] == pytest.approx(each["one"], rel=2e-3)
            assert each["apart"] == []  # kernels, steps, ranges, means and averages
        else:
            assert each["two"][1:] != pytest.approx(each["one"][1:], rel=2e-3)
            assert {variable.split("/")[-1] for variable in each["apart"]} == {
                "moving_mean:0",
                "moving_variance:0",
            }


RAMPED = """
import json
import dlqat_tf, numpy as np, tensorflow as tf
from dlqat_tf.quantizers import ste
from dlqat_tf.training.distribution import replicas

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()
rematerialize, again = ste.rematerialize, []
random = np.random.default_rng(0)
images = random.random((16, 8, 8, 3)).astype(np.float32)
labels = random.integers(0, 4, 16)


def watched(x, after):
    y = rematerialize(x, after)
    again.append(y is not x)
    return y


def trained(rematerialize):
    ste.rematerialize = rematerialize
    again.clear()
    tf.keras.utils.set_random_seed(0)
    model = dlqat_tf.resnet18(4, (8, 8, 3), 1, 2, "gml", width=2)
    loss = dlqat_tf.GMLoss()
    in_force = lambda labels, logits: tf.fill(tf.shape(logits)[:1], tf.identity(loss.ramp))
    model.compile(tf.keras.optimizers.SGD(0.02), loss, metrics=[in_force])
    warmup = dlqat_tf.MarginWarmup(4, steps_per_epoch=1)
    ramp, losses = [], []
    for _ in range(6):
        history = model.fit(images, labels, batch_size=16, callbacks=[warmup], verbose=0).history
        losses += history["loss"]
        ramp += next(each for name, each in history.items() if name != "loss")
    values = [
        [one.numpy().tolist() for one in getattr(each, "values", [each])]
        for each in model.trainable_variables
    ]
    return dict(ramp=ramp, losses=losses, weights=values, again=sum(again))


report = dict(one=trained(watched))
with replicas("mirrored") as two:
    assert two.count == 2
    report |= dict(again=trained(watched), kept=trained(lambda x, after: x))
print("REPORT", json.dumps(report))
"""


def test_the_margin_ramps_and_activations_are_computed_again_under_replicas():
    report = json.loads(said(start(RAMPED)).split("REPORT")[1])
    for each in report.values():
        assert each["ramp"] == [0, 0.25, 0.5, 0.75, 1, 1]
    one, again, kept = (report[name] for name in ("one", "again", "kept"))
    # Each replica computes again what one device does.
    assert (again["again"], kept["again"]) == (2 * one["again"], 0)
    assert one["again"] > 0
    assert again["losses"] == kept["losses"]
    assert again["weights"] == kept["weights"]
    assert all(first == second for first, second in again["weights"])


WORKER = """
import hashlib, json, sys
from pathlib import Path
from dlqat_tf.training import command_line, stages
from dlqat_tf.training.recipe import Recipe

settings = json.loads(sys.argv[1])
settings |= {name: tuple(settings[name]) for name in ("augment", "monitor")}
settings["output"] = Path(sys.argv[2])
fit = stages.fit

def watched(recipe, images, stage, model, *rest):
    fit(recipe, images, stage, model, *rest)
    own = b"".join(each.numpy().tobytes() for each in model.trainable_variables)
    print("WEIGHTS", hashlib.sha256(own).hexdigest())

stages.fit = watched
print("RESULT", command_line.train(Recipe(**settings), {}) is not None)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(recipe, output, other=None):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [
        start(
            WORKER,
            json.dumps((other if other and index else recipe).plain()),
            output,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]


def test_workers(tmp_path):
    """A worker is killed, all are started again, and the end is that of an undisturbed job."""
    recipe = replace(TINY, strategy="multiworker", checkpoint_every=5)
    killed = start_workers(recipe, tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "quantized" / "backup" / "chief"
    while not list(checkpoints.glob("ckpt-2.index")) and killed[1].poll() is None:
        time.sleep(0.05)
    killed[1].send_signal(signal.SIGKILL)
    output = killed[0].communicate()[0]
    assert killed[1].wait() == -signal.SIGKILL
    assert killed[0].returncode == 1, output[-3000:]
    assert "start all workers again" in output

    for name in ("killed", "whole"):
        outputs = [said(worker) for worker in start_workers(recipe, tmp_path / name)]
        assert ["RESULT True" in output for output in outputs] == [True, False]
        # Everything that is trained is the same in both processes.
        assert len({output.split("WEIGHTS")[1].split()[0] for output in outputs}) == 1
        if name == "killed":
            assert "continuing after" in outputs[0]
    weights = [
        tf.keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("killed", "whole")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    histories = [
        [(row["loss"], row["val_accuracy"]) for row in read_history(folder / "history.csv")]
        for folder in (tmp_path / "killed" / "quantized", tmp_path / "whole" / "quantized")
    ]
    assert len(histories[0]) == 3
    np.testing.assert_allclose(*histories, rtol=1e-6)
    # What was measured on both workers' parts is the accuracy on all test images.
    model = stages.load_model(tmp_path / "whole" / "model.keras")
    images = data.load("digits")
    right = sum(
        int((model(batch).numpy().argmax(1) == labels.numpy()).sum())
        for batch, labels in images.test_batches(120)
    )
    assert right == pytest.approx(histories[1][-1][1] * images.test_count, abs=1.01)


@pytest.mark.long
def test_workers_of_different_settings_do_not_start(tmp_path):
    recipe = replace(TINY, strategy="multiworker")
    workers = start_workers(recipe, tmp_path / "run", replace(recipe, seed=3))
    for worker, named in zip(workers, ("there 3, here 0", "there 0, here 3"), strict=True):
        assert f"Received in another one: seed ({named})" in worker.communicate()[0]
        assert worker.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_workers_train_as_one_process_does(tmp_path):
    """Two workers share the batches of one: the same curve, while no step is so long that
    batch norms of nearly constant channels amplify the order of a sum.
    """
    recipe = replace(
        TINY,
        weight_bits=32,
        activation_bits=32,
        float_epochs=3,
        images_per_epoch=48,
        learning_rate=0.0005,
        sync_batch_norm=True,
    )
    workers = start_workers(replace(recipe, strategy="multiworker"), tmp_path / "two")
    one = start(WORKER, json.dumps(recipe.plain()), tmp_path / "one")
    for each in (*workers, one):
        said(each)
    curves = [
        [(row["loss"], row["val_loss"]) for row in read_history(folder / "float/history.csv")]
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert len(curves[0]) == 3
    (one_loss, one_test), (two_loss, two_test) = (zip(*curve, strict=True) for curve in curves)
    np.testing.assert_allclose(two_loss, one_loss, rtol=1e-5)
    np.testing.assert_allclose(two_test, one_test, rtol=1e-3)
