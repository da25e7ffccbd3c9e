import larq as lq
import numpy as np
import pytest
import tensorflow as tf

from dlqat_tf import INQWeights, IRNetWeights, QuantizerProgress, SATWeights
from dlqat_tf.quantizers import DepthwiseWeights
from tests.quantizers.methods import fit, small_model


@pytest.mark.parametrize("arguments", [(0,), (-1,), ("2",), (True,), (1, 0), (1, "2")])
def test_bad_lengths(arguments):
    name = "epochs" if len(arguments) == 1 else "steps_per_epoch"
    with pytest.raises(ValueError, match=f"Expected {name} to be a number above zero"):
        QuantizerProgress(*arguments)


def test_a_model_without_such_a_quantizer():
    for quantizer in (SATWeights(1), IRNetWeights(32), INQWeights(32)):
        with pytest.raises(ValueError, match="Received: a model without one"):
            fit(small_model(quantizer), callbacks=[QuantizerProgress(1)])


def test_a_model_whose_quantizers_are_frozen_trains_on():
    model = small_model(INQWeights(2))
    model.layers[1].trainable = False
    model.compile("sgd", "mse")
    fit(model, callbacks=[QuantizerProgress(1)])
    assert not np.any(model.layers[1].kernel_quantizer.frozen)


def test_both_kernels_of_separable_layers_follow():
    """Training of four steps: the second is in the third of ten phases, of 60 percent."""
    layer = lq.layers.QuantSeparableConv2D(
        4,
        1,
        depthwise_quantizer=DepthwiseWeights(INQWeights(2)),
        pointwise_quantizer=INQWeights(2),
        name="separable",
    )
    inputs = tf.keras.Input((2, 2, 2))
    x = tf.keras.layers.GlobalAveragePooling2D()(layer(inputs))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))
    model.compile("sgd", "mse")
    fit(model, callbacks=[QuantizerProgress(2)])
    assert float(tf.reduce_mean(layer.depthwise_quantizer.quantizer.frozen)) == 1 / 2
    assert float(tf.reduce_mean(layer.pointwise_quantizer.frozen)) == 5 / 8


def test_training_of_less_steps_than_phases_ends_with_all():
    """Two steps, the second in the sixth of ten phases."""
    model = fit(small_model(INQWeights(2)), callbacks=[QuantizerProgress(1)])
    layer = model.layers[1]
    assert np.all(layer.kernel_quantizer.frozen.numpy() == 1)
    assert np.all(np.isin(layer.kernel_quantizer.grid(layer.kernel).codes, (-1, 0, 1)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda quantizer: lq.layers.QuantConv2D(4, 1, kernel_quantizer=quantizer),
        lambda quantizer: lq.layers.QuantDepthwiseConv2D(
            1, depthwise_quantizer=DepthwiseWeights(quantizer)
        ),
    ],
)
@pytest.mark.parametrize(
    ("steps", "epochs", "longest"), [(2, 9, 1), (3, 10, 2), ("auto", 10, 2), (2, 3, 1)]
)
def test_executions_of_more_steps_than_a_phase_are_refused(layer, steps, epochs, longest):
    """Two steps an epoch in ten phases, of which the first freezes 20 percent."""
    quantizer = INQWeights(2)
    inputs = tf.keras.Input((2, 2, 2))
    x = tf.keras.layers.GlobalAveragePooling2D()(layer(quantizer)(inputs))
    model = tf.keras.Model(inputs, tf.keras.layers.Dense(3)(x))
    model.compile("sgd", "mse", steps_per_execution=steps)
    with pytest.raises(
        ValueError,
        match=f"at most {longest}, for each of 10 phases.*steps_per_execution={steps}: compile",
    ):
        fit(model, callbacks=[QuantizerProgress(epochs)])
    assert not np.any(quantizer.frozen)


def test_executions_within_a_phase():
    """Twenty steps by two in ten phases: the last but one ends with 95 percent, as by one."""
    model = small_model(INQWeights(2))
    model.compile("sgd", "mse", steps_per_execution=2)
    seen = []
    watch = tf.keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(
            float(tf.reduce_mean(model.layers[1].kernel_quantizer.frozen))
        )
    )
    fit(model, 10, [QuantizerProgress(10), watch])
    size = model.layers[1].kernel_quantizer.frozen.shape.num_elements()
    assert seen == [round(share * size) / size for share in INQWeights(2).portions]


def test_executions_of_any_length_without_phases():
    model = small_model(IRNetWeights())
    model.compile("sgd", "mse", steps_per_execution=2)
    fit(model, callbacks=[QuantizerProgress(1)])


def test_an_unknown_number_of_steps():
    model = small_model(IRNetWeights())
    endless = tf.data.Dataset.from_generator(
        lambda: iter([(np.ones((1, 2, 2, 2)), np.ones((1, 3)))]),
        output_types=("float32", "float32"),
        output_shapes=((1, 2, 2, 2), (1, 3)),
    )
    with pytest.raises(ValueError, match="pass steps_per_epoch"):
        model.fit(endless, callbacks=[QuantizerProgress(1)], verbose=0)
    model.fit(endless, callbacks=[QuantizerProgress(1, steps_per_epoch=4)], verbose=0)


def test_steps_per_epoch_is_used():
    model = fit(small_model(IRNetWeights()), 1, [QuantizerProgress(2, steps_per_epoch=4)])
    assert float(model.layers[1].kernel_quantizer.progress) == 1 / 8


@pytest.mark.parametrize("quantizer", [IRNetWeights, INQWeights])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, quantizer):
    def callbacks(folder):
        backup = tf.keras.callbacks.BackupAndRestore(tmp_path / folder, delete_checkpoint=False)
        return [QuantizerProgress(5), backup]

    class Killed(Exception):
        pass

    def kill(epoch, logs):
        if epoch == 2:
            raise Killed

    tf.keras.utils.set_random_seed(0)
    whole = small_model(quantizer())
    start = whole.get_weights()
    fit(whole, 5, callbacks("whole"))
    killed = small_model(quantizer())
    killed.set_weights(start)
    stop = tf.keras.callbacks.LambdaCallback(on_epoch_begin=kill)
    with pytest.raises(Killed):
        fit(killed, 5, [*callbacks("killed"), stop])
    resumed = small_model(quantizer())
    fit(resumed, 5, callbacks("killed"))
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
