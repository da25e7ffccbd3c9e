import pytest
import tensorflow as tf

from dlqat_tf.endings import end_of, ending_of

layers = tf.keras.layers


@pytest.mark.parametrize(
    ("end", "ending"),
    [
        ([layers.Dense(3, activation="softmax")], "softmax"),
        ([layers.Dense(3), layers.Softmax()], "softmax"),
        ([layers.Dense(1, activation=tf.nn.sigmoid)], "sigmoid"),
        ([layers.Dense(3)], ""),
        ([layers.Dense(3, activation="relu")], ""),
        ([layers.Reshape((2, 2)), layers.Softmax(axis=1)], ""),
    ],
)
def test_an_ending_is_a_softmax_or_sigmoid_of_each_value(end, ending):
    model = tf.keras.Sequential([tf.keras.Input((4,)), *end])
    assert ending_of(model.output) == ending


def test_an_end_in_a_nested_model():
    inner = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(3, "softmax", name="inner")])
    outer = tf.keras.Sequential([tf.keras.Input((4,)), inner])
    assert end_of(outer.output).name == "inner"
    assert ending_of(outer.output) == "softmax"
