# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring MobileNetV2
#
# A float network that Keras ships becomes a low-bit one by one call, is fine-tuned, and exported.
# The smallest MobileNetV2 learns digits here, so that nothing is downloaded; with
# `weights="imagenet"` and images of 224 pixels the steps are the same.

# %%
from pathlib import Path

import numpy as np

import dlqat_tf
from dlqat_tf import levels, plots
from dlqat_tf.training import data

import tensorflow as tf  # isort: skip

# %% tags=["parameters"]
alpha = 0.35  # width of MobileNetV2, its smallest
size = 32  # pixels; what halves five times leaves one position
images_used = 1437
float_epochs = 20
epochs = 10
folder = Path("mobilenet_v2")

# %% [markdown]
# ## Images
#
# MobileNetV2 takes three channels from -1 to 1. The model prepares pixels itself, by a `Rescaling`
# layer, and the file will take bytes.

# %%
tf.keras.utils.set_random_seed(0)
folder.mkdir(exist_ok=True)
digits = data.load("digits")


def prepared(images):
    """Return pixels (images, size, size, 3) of digits."""
    return np.rint(255 * tf.image.resize(np.repeat(images, 3, axis=-1), (size, size)).numpy())


images, labels = next(
    iter(digits.train_batches(images_used, seed=0, augment=()).as_numpy_iterator())
)
images = prepared(images)
test_images, test_labels = (
    np.concatenate(part) for part in zip(*digits.test_batches(64).as_numpy_iterator(), strict=True)
)
test_images = prepared(test_images)

# %% [markdown]
# ## The float network

# %%
inputs = tf.keras.Input((size, size, 3), name="pixels")
body = tf.keras.applications.MobileNetV2(
    (size, size, 3), alpha, weights=None, classes=10, classifier_activation=None
)
for layer in body.layers:
    if isinstance(layer, tf.keras.layers.BatchNormalization):
        layer.momentum = 0.9  # Keras's 0.999 needs thousands of steps
x = tf.keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
float_model = tf.keras.Model(inputs, body(x))
float_model.compile(
    tf.keras.optimizers.Adam(2e-3),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
float_model.fit(images, labels, batch_size=64, epochs=float_epochs, verbose=2)
float_accuracy = float_model.evaluate(test_images, test_labels, verbose=0)[1]
print(f"float: {float_accuracy:.2%}")

# %% [markdown]
# ## Four bits
#
# `quantize` carries the weights over, sets the activation ranges on the images, and says of every
# layer what became of it. Depthwise convolutions have few weights and suffer most at low bits, so
# they keep 8 here, by a pattern of names.

# %%
low_bit, report = dlqat_tf.quantize(
    float_model,
    weight_bits=4,
    activation_bits=4,
    head="gml",
    overrides={"*depthwise*": {"weight_bits": 8}},
    images=images[:512],
    labels=labels[:512],
)
report.print()

# %%
before = levels.activation_ranges(low_bit)
low_bit.compile(tf.keras.optimizers.Adam(5e-4), dlqat_tf.GMLoss(alpha=0.1), metrics=["accuracy"])
low_bit.fit(images, labels, batch_size=64, epochs=epochs, verbose=2)
accuracy = low_bit.evaluate(test_images, test_labels, verbose=0)[1]
print(f"W4A4: {accuracy:.2%}")

# %%
plots.activation_ranges(before, levels.activation_ranges(low_bit))

# %% [markdown]
# ## The file

# %%
export = dlqat_tf.export.to_tflite(low_bit, folder / "mobilenet_v2.tflite", force=True)
plots.export_report(export)

# %% [markdown]
# The file equals the simulation in every layer. Between it and the trained network stand the
# biases, which export moves to what int8 kernels can hold (the snapped model has them): at 4 bits,
# through fifty layers of few channels, that changes some decisions, and `failures` says so.

# %%
snapped = tf.keras.models.load_model(export.snapped, compile=False)
parity = dlqat_tf.export.parity(
    snapped, export.path, test_images.astype(np.uint8), test_labels, trained=low_bit
)
print(parity.failures() or "nothing differs", parity.top1)
plots.parity(parity)
