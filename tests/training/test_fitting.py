import dataclasses

import numpy as np
import pytest

import dlqat_tf
from dlqat_tf.training import data, starting
from dlqat_tf.training.fitting import compile_model, fit, loss_of, monitors_of, trainer_of
from tests.training.recipes import TINY

import tensorflow as tf  # isort: skip


def test_distillation_has_the_weight_and_temperature_of_the_recipe():
    recipe = dataclasses.replace(
        TINY, head="cosine", distillation_weight=2.0, distillation_temperature=3.0, ams_scale=7.0
    )
    model = one_layer(dlqat_tf.CosineHead(2))
    layer = trainer_of(recipe, model, model).layers[-1]
    assert (layer._weight, layer._temperature) == (2.0, 3.0)
    assert float(layer._student_logits(tf.constant(1.0))) == 7.0


@pytest.mark.parametrize(
    ("monitor", "expected"), [((), []), (("quantizers",), ["QuantizerMonitor"])]
)
def test_a_recipe_chooses_what_is_monitored(tmp_path, monitor, expected):
    recipe, images = dataclasses.replace(TINY, monitor=monitor), data.load("digits")
    stage = starting.stages_of(recipe)[-1]
    monitors = monitors_of(recipe, images, stage, None, tmp_path)
    assert [type(each).__name__ for each in monitors] == expected
    assert all(each.images.shape == (64, 8, 8, 1) for each in monitors)


def rates(stage=0, **changes):
    """The learning rate of a stage by step, of 10 steps an epoch."""
    recipe = dataclasses.replace(TINY, **changes)
    model = one_layer(dlqat_tf.LinearHead(2))
    compile_model(recipe, starting.stages_of(recipe)[stage], model, steps=10)
    return model.optimizer._learning_rate


def one_layer(layer):
    return tf.keras.Sequential([tf.keras.Input((1,)), layer])


def test_quantized_stage_can_have_its_own_learning_rate():
    peaks = [float(rates(stage, quantized_learning_rate=0.01)(10)) for stage in (0, 1)]
    assert peaks == pytest.approx([0.05, 0.01])


def test_schedule_warms_up_linearly_and_ends_at_zero():
    rate = rates(lr_warmup_epochs=1)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(0.025)
    assert float(rate(10)) == pytest.approx(0.05)
    assert float(rate(15)) == pytest.approx(0.025)
    assert float(rate(20)) == pytest.approx(0.0, abs=1e-9)


def test_losses_have_the_margins_of_the_recipe():
    loss = loss_of(dataclasses.replace(TINY, gml_alpha=0.3, likelihood_weight=0.1))
    assert (loss.alpha, loss.likelihood_weight) == (0.3, 0.1)
    loss = loss_of(dataclasses.replace(TINY, head="cosine", ams_margin=0.2, ams_scale=10.0))
    assert (loss.margin, loss.scale) == (0.2, 10.0)


def test_the_optimizer_has_the_momentum_of_the_recipe():
    recipe, model = dataclasses.replace(TINY, momentum=0.7), one_layer(dlqat_tf.LinearHead(2))
    compile_model(recipe, starting.stages_of(recipe)[0], model, steps=10)
    assert model.optimizer.momentum == 0.7


def built(**changes):
    recipe = dataclasses.replace(TINY, **changes)
    return starting.build_model(recipe, data.load("digits"), starting.stages_of(recipe)[0])


def test_network_has_the_shape_and_seed_of_the_recipe():
    model = built(stem="imagenet", width=8, final_gain=0.5)
    assert model.get_layer("stem_conv").kernel.shape == (7, 7, 1, 8)
    assert model.get_layer("stage4_block2_2_bn").gamma.numpy()[0] == 0.5
    first, same, other = (
        built(seed=seed).get_layer("stem_conv").get_weights()[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_the_first_batch_of_a_compiled_step_is_checked_outside_of_it(tmp_path, monkeypatch):
    gpu = [tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpu)
    digits = data.load("digits")
    wrong = tf.data.Dataset.from_tensors((tf.zeros((4, 8, 8, 1)), [0, 1, 2, 10]))
    monkeypatch.setattr(type(digits), "train_batches", lambda *_, **__: wrong)
    stage = starting.stages_of(TINY)[0]
    model = starting.build_model(TINY, digits, stage)
    with pytest.raises(ValueError, match=r"first batch .* labels from 0 to 9.* from 0 to 10"):
        fit(TINY, digits, stage, model, tmp_path)
    assert model.optimizer.iterations == 0
