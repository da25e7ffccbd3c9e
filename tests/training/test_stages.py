import dataclasses
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import dlqat_tf
from dlqat_tf.training import data, fitting, starting
from dlqat_tf.training.batch_norm import reestimate
from dlqat_tf.training.callbacks import StopWhenNotFinite, TrainingDiverged
from dlqat_tf.training.checkpoints import Backup, position
from dlqat_tf.training.folder import claim_output
from dlqat_tf.training.history import read_history
from dlqat_tf.training.lock import FolderInUse, FolderLost, locked
from dlqat_tf.training.recipe import Recipe, read_recipe
from dlqat_tf.training.stages import run
from tests.training.recipes import TINY

import tensorflow as tf  # isort: skip

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = dataclasses.replace(
        TINY,
        width=8,
        float_epochs=3,
        epochs=4,
        monitor=("quantizers", "mixture"),
        output=tmp_path_factory.mktemp("runs") / "tiny",
    )
    return recipe, run(recipe)


def test_run_writes_what_it_promises(finished):
    recipe, result = finished
    written = {path.name for path in recipe.output.iterdir()}
    assert written >= {"model.keras", "best.keras", "curves.png", "result.json", "recipe.json"}
    assert [(stage["name"], stage["epochs"]) for stage in result.stages] == [
        ("float", 3),
        ("quantized", 4),
    ]
    stored = json.loads((recipe.output / "result.json").read_text())
    assert stored["accuracy"] == result.accuracy
    assert stored["recipe"]["weight_bits"] == 1
    assert stored["environment"]["versions"]["tensorflow"] == tf.__version__
    assert stored["seconds"] > 0


def test_headline_is_the_last_epoch_of_the_saved_model(finished):
    recipe, result = finished
    images = data.load("digits")
    model = tf.keras.models.load_model(recipe.output / "model.keras")
    right = [
        np.argmax(model.predict_on_batch(batch), axis=1) == labels
        for batch, labels in images.test_batches(64)
    ]
    assert np.concatenate(right).mean() == pytest.approx(result.accuracy, abs=1e-6)
    assert result.accuracy > 0.4  # chance is 0.1
    assert result.best_accuracy >= result.accuracy


def test_exported_files_compute_what_was_trained(finished, tmp_path):
    recipe, _ = finished
    model = tf.keras.models.load_model(recipe.output / "model.keras")
    batches = list(data.load("digits").test_batches(64).as_numpy_iterator())
    images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    for write in (dlqat_tf.export.to_tflite, dlqat_tf.export.to_lce):
        path = tmp_path / f"{write.__name__}.tflite"
        write(model, path)
        snapped = tf.keras.models.load_model(path.with_suffix(".snapped.keras"))
        report = dlqat_tf.export.parity(snapped, path, images, labels)
        assert report.agreement["simulation_file"] == 100.0
        assert report.first_diverging is None
        assert report.agreement["keras_file"] >= 99.0  # 360 images: three of them
        assert report.top1["file"] > 40.0


def test_last_stage_has_the_widths_of_the_recipe(finished):
    recipe, _ = finished
    model = tf.keras.models.load_model(recipe.output / "model.keras")
    assert model.get_layer("stage2_block1_1_conv").kernel_quantizer.bits == 1
    assert model.get_layer("stage2_block1_1_act").bits == 2
    assert model.get_layer("stage2_block1_residual").bits == 8
    assert isinstance(model.get_layer("head"), dlqat_tf.GaussianMixtureHead)
    first = tf.keras.models.load_model(recipe.output / "float" / "last.keras")
    assert first.get_layer("stage2_block1_1_conv").kernel_quantizer.bits == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": 1}, "only where a quantized stage follows"),
        ({"float_stage": Path("nowhere")}, "with last.keras and history.csv in it"),
        (
            {"width": 4},
            r"same head, stem, width and classes.*stem_conv/kernel.*\(3, 3, 1, 4\) here",
        ),
        (
            {"head": "linear", "monitor": ()},
            "same head, stem, width and classes.*head/bias is kept",
        ),
    ],
)
def test_a_float_stage_must_fit(finished, tmp_path, changes, message):
    recipe, _ = finished
    values = dict(float_stage=recipe.output / "float", output=tmp_path / "run") | changes
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(recipe, **values))


def test_a_damaged_float_stage_comes_back_in_its_own_run(copied, tmp_path):
    recipe, _ = copied
    stage = recipe.output / "float"
    (stage / "last.keras").write_bytes(b"")
    other = dataclasses.replace(recipe, float_stage=stage, output=tmp_path / "other")
    with pytest.raises(ValueError, match=r"float/last\.keras is damaged.*its run goes on from"):
        run(other)


def test_a_stage_of_rounded_activations_is_no_float_stage(finished, tmp_path):
    recipe, _ = finished
    other = dataclasses.replace(recipe, stages=1, weight_bits=32, output=tmp_path / "other")
    run(other)
    values = dict(float_stage=other.output / "quantized", output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"hold a float network.*quantized, whose layer '\w+' ro"):
        run(dataclasses.replace(recipe, **values))


def test_a_quantized_stage_is_no_float_stage(finished, tmp_path):
    recipe, _ = finished
    other = dataclasses.replace(
        recipe, float_stage=recipe.output / "quantized", output=tmp_path / "run"
    )
    with pytest.raises(ValueError, match=r"hold a float network.*quantized, whose layer '\w+' ro"):
        run(other)
    assert not other.output.exists()


def test_parity_sweep(finished, tmp_path, monkeypatch, capsys):
    recipe, result = finished
    assert read_recipe(recipe.output) == recipe
    script = BENCHMARKS / "parity_sweep.py"
    report = tmp_path / "report.json"
    arguments = [recipe.output, "--widths", 2, 2, "--steps", 3, "--binary", "--int4"]
    arguments += ["--output", tmp_path / "sweep", "--json", report]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    for status in ((0, 1), (2,)):  # a second report is refused
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(script), run_name="__main__")
        assert exit_.value.code in status
    assert "--force" in capsys.readouterr().err
    rows = json.loads(report.read_text())["rows"]
    assert [(row["network"], row["file"]) for row in rows] == [
        ("W2A2", "int8"),
        ("W2A2", "binary"),
        ("W2A2", "int4"),
    ]
    assert {row["simulation_file"] for row in rows} == {100.0}
    assert len({row["bytes"] for row in rows}) == 3
    trained = tmp_path / "sweep" / "W2A2"
    assert read_recipe(trained).images_per_epoch == 3 * 64
    assert json.loads((trained / "result.json").read_text())["float_accuracy"] == (
        result.float_accuracy
    )
    assert not (trained / "float").exists()  # the run's own is where training started


def test_a_finished_run_is_not_trained_again(finished):
    recipe, result = finished
    before = (recipe.output / "quantized" / "last.keras").stat().st_mtime_ns
    again = run(recipe)
    assert again.accuracy == result.accuracy
    assert (recipe.output / "quantized" / "last.keras").stat().st_mtime_ns == before


def test_a_stage_whose_last_step_diverges_has_no_result(tmp_path):
    """The first step of two has the learning rate 0, so that none sees a loss that is no number."""
    recipe = dataclasses.replace(
        TINY,
        head="linear",
        width=2,
        float_epochs=1,
        images_per_epoch=128,
        learning_rate=1e30,
        output=tmp_path / "run",
    )
    for _ in range(2):  # trained, and found finished
        with pytest.raises(TrainingDiverged, match=r"float stage ended with a loss of .*--output"):
            run(recipe)
    assert not (tmp_path / "run" / "quantized").exists()


def test_other_settings_in_the_same_folder_are_refused(finished):
    recipe, _ = finished
    with pytest.raises(ValueError, match=r"other settings: weight_bits \(there 1, here 4\)"):
        run(dataclasses.replace(recipe, weight_bits=4))


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="it has other files"):
        run(dataclasses.replace(TINY, output=tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    monitors = []
    make = fitting.monitors_of
    monkeypatch.setattr(
        fitting, "monitors_of", lambda *given: monitors.extend(make(*given)) or monitors
    )
    recipe = dataclasses.replace(
        TINY,
        head="linear",
        stages=1,
        learning_rate=1e38,
        momentum=0.0,
        monitor=("quantizers",),
        output=tmp_path / "run",
    )
    with pytest.raises(TrainingDiverged, match="last good checkpoint: none yet"):
        run(recipe)
    assert not (recipe.output / "model.keras").exists()
    (monitor,) = monitors
    with pytest.raises(RuntimeError, match="already closed"):
        monitor.write({"late": 1.0}, 1)


@pytest.mark.parametrize(
    ("method", "bits", "epochs"), [("lsq", 2, 1), ("inq", 2, 1), ("bwnh", 1, 2)]
)
def test_methods_start_from_a_float_stage_and_continue(tmp_path, capsys, method, bits, epochs):
    recipe = dataclasses.replace(
        TINY,
        method=method,
        weight_bits=bits,
        float_epochs=epochs,
        epochs=epochs,
        output=tmp_path / "run",
    )
    result = run(recipe)
    assert result.accuracy > 0.1
    fitted = "weights start from bwnh on" in capsys.readouterr().out
    assert fitted == (method == "bwnh")
    model = tf.keras.models.load_model(tmp_path / "run" / "model.keras")
    quantizer = model.get_layer("stage1_block1_1_conv").kernel_quantizer
    assert quantizer.bits == bits
    if method == "inq":  # the callback came to the last of ten phases
        assert float(tf.reduce_mean(quantizer.frozen)) == 1
    with pytest.raises(ValueError, match="method"):
        run(dataclasses.replace(recipe, method="sat", weight_bits=1))


def test_ranges_that_start_from_the_first_batch_ask_for_no_images(capsys):
    model = dlqat_tf.resnet18(
        10, (8, 8, 1), 2, 2, width=4, residual_bits=None, method="lsq", block="pre"
    )
    starting.set_ranges(TINY, None, model, None)
    assert capsys.readouterr().out == ""


def whole_epochs(backup):
    """Return how many epochs a run that still writes has saved."""
    try:
        return position(backup, 179).epochs
    except ValueError:  # the checkpoint was replaced while it was read
        return 0


@pytest.mark.parametrize("kind", ["after an epoch", "inside an epoch", "distilled"])
def test_killed_run_ends_with_the_weights_of_an_uninterrupted_one(finished, tmp_path, kind):
    options = "stages=1, batch_size=8"
    if kind == "inside an epoch":
        options += ", checkpoint_every=5"
    if kind == "distilled":  # from a network of another width, in a file
        teacher = str(finished[0].output / "float" / "last.keras")
        options += f", teacher=Path({teacher!r}), reestimation_images=100"
    code = (
        "import sys; from pathlib import Path; from dlqat_tf.training.stages import *;"
        f"run(Recipe(dataset='digits', augment=('crop',), width=4, epochs=2, {options},"
        "learning_rate=.05, reference_batch=64, output=Path(sys.argv[1])))"
    )

    def start(name):
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    killed = start("killed")
    history = tmp_path / "killed" / "quantized" / "history.csv"
    backup = tmp_path / "killed" / "quantized" / "backup"
    deadline = time.monotonic() + 240
    while whole_epochs(backup) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # 179 steps of the next epoch take seconds
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert len(read_history(history)) == 1
    assert (position(backup, 179).steps > 0) == (kind == "inside an epoch")
    assert not (tmp_path / "killed" / "model.keras").exists()

    assert start("killed").wait() == 0
    assert start("whole").wait() == 0
    weights = [
        tf.keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("killed", "whole")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    histories = [
        [row["loss"] for row in read_history(tmp_path / name / "quantized/history.csv")]
        for name in ("killed", "whole")
    ]
    # Inside an epoch the sum behind the mean is put together from two parts.
    rel = 1e-6 if kind == "inside an epoch" else 0
    assert histories[0] == pytest.approx(histories[1], rel=rel, abs=0)


def test_deterministic_operations_are_asked_for(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dlqat_tf.training.stages import *;"
        "from tensorflow.python.framework import config;"
        "recipe = Recipe(dataset='digits', augment=('crop', 'flip'), width=2, stages=1, epochs=1,"
        "images_per_epoch=128, batch_size=64, deterministic=True, output=Path(sys.argv[1]));"
        "assert not config.is_op_determinism_enabled(); run(recipe);"
        "assert config.is_op_determinism_enabled()"
    )
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    weights = [
        tf.keras.models.load_model(tmp_path / name / "model.keras").get_weights()
        for name in ("one", "two")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))


def test_deterministic_policies_draw_from_the_seed(tmp_path, monkeypatch):
    """Keras-cv's draw from the global generator, which TensorFlow has to be given then."""
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="found the file"):  # refused before anything is drawn
        run(dataclasses.replace(TINY, deterministic=True, seed=3, output=tmp_path / "file"))
    drawn = tf.random.get_global_generator().uniform([4])
    np.testing.assert_array_equal(drawn, tf.random.Generator.from_seed(3).uniform([4]))


@pytest.fixture(scope="module")
def quantized_from(finished, tmp_path_factory):
    """Runs of the quantized stage from the finished float one, with changes."""
    recipe, _ = finished

    def start(**changes):
        output = tmp_path_factory.mktemp("runs") / "quantized"
        changed = dataclasses.replace(
            recipe, float_stage=recipe.output / "float", output=output, epochs=1, **changes
        )
        return changed, run(changed)

    return start


def last_loss(result_of):
    recipe, _ = result_of
    return read_history(recipe.output / "quantized" / "history.csv")[-1]


@pytest.fixture(scope="module")
def alone(quantized_from):
    return quantized_from()


def test_distillation_adds_to_the_training_loss_only(alone, quantized_from, caplog):
    distilled = quantized_from(teacher="float", distillation_weight=2.0)
    assert "failed to serialize" not in caplog.text  # TensorBoard's graph
    assert last_loss(distilled)["loss"] > 1.1 * last_loss(alone)["loss"]
    model = tf.keras.models.load_model(distilled[0].output / "model.keras")
    assert [layer.name for layer in model.layers] == [
        layer.name for layer in tf.keras.models.load_model(alone[0].output / "model.keras").layers
    ]
    best = tf.keras.models.load_model(distilled[0].output / "best.keras")
    assert best.count_params() == model.count_params()
    images = data.load("digits")
    model.compile(loss=dlqat_tf.GMLoss())
    evaluated = model.evaluate(images.test_batches(64), verbose=0)
    assert evaluated == pytest.approx(last_loss(distilled)["val_loss"], rel=1e-4)


def test_a_teacher_must_fit(finished, tmp_path):
    wrong = tmp_path / "wrong.keras"
    dlqat_tf.resnet18(3, (8, 8, 1), width=2).save(wrong)
    recipe = dataclasses.replace(TINY, teacher=wrong, output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"outputs of the same shapes.*\(10,\).*\(3,\)"):
        run(recipe)
    assert not recipe.output.exists()


def test_batch_norms_are_measured_anew_at_the_end(alone, quantized_from):
    recipe, result = quantized_from(reestimation_images=640)
    (float_stage, stage) = result.stages
    assert stage["moving_averages_accuracy"] == pytest.approx(alone[1].accuracy)
    assert stage["final_accuracy"] == result.accuracy
    assert "moving_averages_accuracy" not in float_stage
    model, before = (
        tf.keras.models.load_model(each.output / "model.keras") for each in (recipe, alone[0])
    )
    moved = [
        not np.array_equal(ours.numpy(), theirs.numpy())
        for ours, theirs in zip(model.weights, before.weights, strict=True)
    ]
    statistics = ["moving_" in weight.name for weight in model.weights]
    assert moved == statistics
    digits = data.load("digits")
    assert recipe.augment  # as in training
    batches = digits.train_batches(recipe.batch_size, seed=recipe.seed, augment=recipe.augment)
    reestimate(before, batches.take(640 // recipe.batch_size))
    for ours, theirs in zip(model.weights, before.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    model.compile(metrics=["accuracy"], loss=dlqat_tf.GMLoss())
    _, accuracy = model.evaluate(digits.test_batches(64), verbose=0)
    assert accuracy == pytest.approx(result.accuracy)
    file = recipe.output / "quantized" / "reestimated.json"
    whole = file.read_bytes()
    advice = "put the right one back, or delete .*last.keras too, to measure anew"
    values = (("1.5", "0.5"), ("0.5", "7"), ("0.5", "1.5"), ('"1.5"', "0.5"), ("0.5", "null"))
    texts = [f'{{"val_loss": {loss}, "val_accuracy": {each}}}'.encode() for loss, each in values]
    for damaged in (whole[:-1], *texts[1:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{file} is damaged: {advice}"):
            run(recipe)
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} is gone: {advice}"):
        run(recipe)
    file.write_bytes(texts[0])
    assert run(recipe).accuracy == 0.5
    file.write_bytes(whole)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_sixteen_bit_policies_train_and_resume(tmp_path, monkeypatch, precision):
    recipe = dataclasses.replace(
        TINY,
        stages=1,
        epochs=1,
        precision=precision,
        images_per_epoch=320,  # 5 steps
        checkpoint_every=3,
        output=tmp_path / "run",
    )
    result = run(recipe)
    assert np.isfinite(result.accuracy)
    assert tf.keras.mixed_precision.global_policy().name == "float32"
    model = tf.keras.models.load_model(recipe.output / "model.keras")
    assert model.get_layer("stage1_block1_1_conv").compute_dtype == precision.removeprefix("mixed_")
    assert model.get_layer("stage1_block1_1_act").alpha.dtype == tf.float32

    stopped = dataclasses.replace(recipe, output=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        save, scales = Backup._save, []

        def save_and_stop(backup, reached):
            save(backup, reached)
            scales.append(getattr(backup.model.optimizer, "loss_scale", None))
            raise KeyboardInterrupt

        patch.setattr(Backup, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    # Gradients of float16 are scaled, by half of the scale before wherever they overflow.
    assert (scales[0] is not None) == (precision == "mixed_float16")
    run(stopped)
    resumed = tf.keras.models.load_model(stopped.output / "model.keras")
    for ours, theirs in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_soft_labels_train(tmp_path):
    recipe = dataclasses.replace(
        TINY, augment=("mixup",), stages=1, epochs=1, output=tmp_path / "run"
    )
    assert 0 < run(recipe).accuracy <= 1


def test_what_is_monitored_is_written_into_tensorboard(finished):
    recipe, _ = finished
    folders = {
        stage: {path.name for path in (recipe.output / stage / "tensorboard").iterdir()}
        for stage in ("float", "quantized")
    }
    assert folders == {
        "float": {"train", "validation", "mixture"},  # it rounds nothing
        "quantized": {"train", "validation", "mixture", "quantizers"},
    }


def test_images_per_epoch_shortens_the_epoch(tmp_path, capsys):
    recipe = dataclasses.replace(
        TINY, head="cosine", stages=1, epochs=1, images_per_epoch=130, output=tmp_path / "run"
    )
    run(recipe)
    assert "1 epoch of 2 steps" in capsys.readouterr().out


def test_images_per_epoch_above_the_training_set_are_all_of_it_and_said(tmp_path, capsys):
    recipe = dataclasses.replace(
        TINY, head="cosine", stages=1, epochs=1, train_size=70, images_per_epoch=200
    )
    run(dataclasses.replace(recipe, output=tmp_path / "run"))
    printed = " ".join(capsys.readouterr().out.split())
    assert "images_per_epoch 200 is above the 70 training images" in printed
    assert "1 epoch of 1 step," in printed


@pytest.mark.parametrize("held_out", [None, 180])
def test_parity_sweep_plans_no_fewer_steps_than_asked_for(held_out):
    plan = runpy.run_path(str(BENCHMARKS / "parity_sweep.py"))["_epochs"]
    # Of 1,437 images 180 are held out: 39 steps make an epoch, instead of 44.
    recipe = dataclasses.replace(TINY, batch_size=32, train_size=None, validation_size=held_out)
    planned = dataclasses.replace(recipe, **plan(recipe, None, 380))
    images = data.load("digits", validation_size=held_out)
    assert 380 <= planned.epochs * fitting.steps_of(planned, images) <= 390
    with pytest.raises(ValueError, match="at least 1 step"):
        plan(recipe, None, 0)


def test_learning_rate_scales_with_the_batch():
    recipe = Recipe(learning_rate=0.2, reference_batch=768, batch_size=192)
    assert recipe.peak_learning_rate() == pytest.approx(0.05)
    assert recipe.peak_learning_rate(starts_random=False) == pytest.approx(0.05)


def test_weight_decay_is_on_kernels_only():
    images = data.load("digits")
    stage = starting.stages_of(TINY)[-1]
    model = starting.build_model(TINY, images, stage)
    decayed = [layer.name for layer in model.layers if layer.losses]
    assert decayed == [layer.name for layer in model.layers if hasattr(layer, "kernel")]
    kernel = model.get_layer("stem_conv").kernel.latent_variable.numpy()
    with tf.GradientTape() as tape:
        penalty = model.get_layer("stem_conv").losses[0]
    gradient = tape.gradient(penalty, model.get_layer("stem_conv").trainable_weights)[0]
    np.testing.assert_allclose(gradient, TINY.weight_decay * kernel, rtol=1e-6)
    none = starting.build_model(dataclasses.replace(TINY, weight_decay=0.0), images, stage)
    assert not none.losses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs of at least 1"),
        ({"learning_rate": -1.0}, "learning_rate to be finite and not negative"),
        ({"quantized_learning_rate": -1.0}, "quantized_learning_rate to be finite"),
        ({"images_per_epoch": 3}, r"at least one batch \(64\)"),
        ({"weight_bits": 9}, "weight_bits: .* Received: bits=9"),
        ({"augment": ("crop", "randaugment")}, "Expected images of 3 channels"),
        ({"batch_size": 5000}, "batch_size from 1 to 1437"),
        ({"train_size": 3}, "train_size from 10"),
        ({"validation_size": 3}, "validation_size from 10"),
    ],
)
def test_bad_settings_fail_before_anything_is_written(tmp_path, change, message):
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(TINY, output=output, **change))
    assert not output.exists()


def test_one_class_is_nothing_to_train_on(tmp_path, monkeypatch):
    one = data.Arrays(np.zeros((8, 8, 8, 3), np.uint8), np.zeros(8, int))
    images = data.ImageData("folder", ("cat",), one.image_shape, 8, 8, one, one)
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    with pytest.raises(ValueError, match=r"two classes to train on\. Received: cat alone"):
        run(dataclasses.replace(TINY, batch_size=8, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [3, "runs/x", None, Recipe])
def test_what_is_no_recipe_is_refused(other):
    with pytest.raises(ValueError, match=r"Expected a Recipe\. Received: .*read_recipe\(folder"):
        run(other)


def test_settings_that_need_no_images_fail_before_any_are_looked_for(monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("looked for images"))
    with pytest.raises(ValueError, match="weight_bits"):
        run(dataclasses.replace(TINY, weight_bits=9))


def test_a_setting_that_fails_does_not_delete_the_run_that_restart_would(tmp_path):
    output = tmp_path / "run"
    claim_output(dataclasses.replace(TINY, output=output))
    (output / "model.keras").touch()
    with pytest.raises(ValueError, match="batch_size from 1 to 1437"):
        run(dataclasses.replace(TINY, output=output, batch_size=5000, restart=True))
    assert {path.name for path in output.iterdir()} == {"recipe.json", "model.keras"}


@pytest.mark.parametrize("stage", ["float", "quantized"])
def test_a_folder_that_is_moved_in_training_is_left_alone(tmp_path, monkeypatch, stage):
    """Nothing is written under the old name, and what was moved back goes on."""
    output, moved = tmp_path / "run", tmp_path / "moved"
    recipe = dataclasses.replace(TINY, width=2, float_epochs=1, epochs=1, output=output)

    def move(self, batch, logs=None):
        if (output / stage).is_dir():
            output.rename(moved)

    with monkeypatch.context() as patch:
        patch.setattr(StopWhenNotFinite, "on_train_batch_end", move)
        with pytest.raises(FolderLost, match="run was removed, renamed or unmounted"):
            run(recipe)
    assert not output.exists()
    moved.rename(output)
    assert len(run(recipe).stages) == 2


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    with pytest.raises(PermissionError, match=rf"can be written to, received {tmp_path}: choose"):
        run(dataclasses.replace(TINY, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("looked for images"))
    with locked(tmp_path), pytest.raises(FolderInUse, match=f"process {os.getpid()} on"):
        run(dataclasses.replace(TINY, output=tmp_path))


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run that a test may damage."""
    recipe, result = finished
    shutil.copytree(recipe.output, tmp_path / "run")
    return dataclasses.replace(recipe, output=tmp_path / "run"), result


def test_damaged_weights_of_a_stage_are_named_and_come_back(copied):
    recipe, result = copied
    file = recipe.output / "quantized" / "last.keras"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:9000] + bytes(200) + whole[9200:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"quantized/last\.keras is damaged.*Delete it: the"):
            run(recipe)
    file.unlink()
    assert run(recipe).accuracy == result.accuracy


def test_damaged_best_weights_replace_no_whole_ones(copied, capsys):
    recipe, result = copied
    file = recipe.output / "quantized" / "best.keras"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:9000] + bytes(200) + whole[9200:]):
        file.write_bytes(damaged)
        assert run(recipe).accuracy == result.accuracy
        assert "best.keras is damaged, and is not copied" in " ".join(
            capsys.readouterr().out.split()
        )
        assert (recipe.output / "best.keras").read_bytes() == whole
    (recipe.output / "best.keras").unlink()
    file.write_bytes(whole)
    run(recipe)
    assert (recipe.output / "best.keras").read_bytes() == whole


def test_a_result_is_never_of_a_history_with_gaps(copied, capsys):
    recipe, result = copied
    file = recipe.output / "quantized" / "history.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))  # epoch 1 of 4
    again = run(recipe)
    assert (again.accuracy, again.best_accuracy) == (result.accuracy, None)
    assert again.stages[1]["epochs"] == 4
    assert again.stages[1]["unrecorded_epochs"] == 1
    assert "has lost 1 of 4 epochs" in " ".join(capsys.readouterr().out.split())
    file.unlink()  # all of them: the last one's accuracy is measured
    again = run(recipe)
    assert again.accuracy == pytest.approx(result.accuracy, abs=1e-6)
    assert again.stages[1]["unrecorded_epochs"] == 3
    assert json.loads((recipe.output / "result.json").read_text())["seconds"] is None


def test_what_is_read_is_what_the_recipe_asks_for(tmp_path, monkeypatch):
    asked = {}

    def load(name, **options):
        asked.update(options, name=name)
        raise data.DataError("that is enough")

    monkeypatch.setattr(data, "load", load)
    recipe = dataclasses.replace(
        TINY, cache="memory", train_size=100, validation_size=50, seed=3, output=tmp_path / "run"
    )
    with pytest.raises(data.DataError, match="enough"):
        run(recipe)
    assert asked == {
        "name": "digits",
        "data_dir": None,
        "image_size": None,
        "train_size": 100,
        "validation_size": 50,
        "seed": 3,
        "cache": "memory",
    }
