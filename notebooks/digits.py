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
# # Digits: from float to W1A2 to a file
#
# A narrow ResNet-18 learns the 8x8 digits of scikit-learn in float, then again with weights of
# 1 bit and activations of 2 bits, and becomes a `.tflite` file that computes what was trained.
# Nothing is downloaded.

# %%
from pathlib import Path

import numpy as np

import dlqat_tf
from dlqat_tf import levels, plots
from dlqat_tf.quantizers.calibration import calibrate
from dlqat_tf.training import data
from dlqat_tf.training.monitoring import QuantizerMonitor

import tensorflow as tf  # isort: skip

# %% tags=["parameters"]
width = 16
float_epochs = 15
epochs = 15
folder = Path("digits")

# %% [markdown]
# ## The images
#
# Pixels / 255, without mean and standard deviation, so that the file takes bytes as they are.

# %%
tf.keras.utils.set_random_seed(0)
folder.mkdir(exist_ok=True)
digits = data.load("digits")
batches = digits.train_batches(64, seed=0, augment=("crop",))
steps = digits.steps_per_epoch(64)
plain = digits.train_batches(512, seed=0, augment=())
sample, sample_labels = next(iter(plain.as_numpy_iterator()))
test_images, test_labels = (
    np.concatenate(part) for part in zip(*digits.test_batches(64).as_numpy_iterator(), strict=True)
)
print(
    f"{digits.train_count} training images of shape {digits.image_shape}, {len(test_images)} test"
)


# %%
def network(weight_bits, activation_bits, residual_bits):
    """Return a ResNet-18 whose head has a mean for each class."""
    return dlqat_tf.resnet18(
        digits.num_classes,
        digits.image_shape,
        weight_bits,
        activation_bits,
        head="gml",
        width=width,
        residual_bits=residual_bits,
        final_gain=0.15,  # features start at the scale of the means
    )


def train(model, epochs, callbacks=()):
    """Train by GML, and return top-1 on the test images."""
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.05, steps * epochs)
    model.compile(
        tf.keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        dlqat_tf.GMLoss(fit_power=4.0),
        metrics=["accuracy"],
    )
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, callbacks=list(callbacks), verbose=2)
    return model.evaluate(test_images, test_labels, verbose=0)[1]


# %% [markdown]
# ## In float
#
# "32 bits" are the clamped weights of SAT that are not rounded yet: the stage that low bits start
# from.

# %%
float_network = network(32, 32, 32)
float_accuracy = train(float_network, float_epochs)
print(f"float: {float_accuracy:.2%}")

# %% [markdown]
# ## 1-bit weights, 2-bit activations
#
# These are the two functions that do it, with the gradients that training uses in place of theirs.

# %%
plots.quantizer(dlqat_tf.SATWeights(1))

# %%
plots.quantizer(dlqat_tf.CGPACT(2, alpha_init=1.0), lowest=-0.5)

# %% [markdown]
# The low-bit network takes the float one's weights, and each activation range starts where it loses
# least on what the float network computes there.

# %%
low_bit = network(1, 2, 8)
dlqat_tf.load_weights(low_bit, float_network, quiet=True)
calibrate(low_bit, float_network, sample)
before = levels.activation_ranges(low_bit)
monitor = QuantizerMonitor(folder / "tensorboard", sample[:256])
accuracy = train(low_bit, epochs, [monitor])
print(f"W1A2: {accuracy:.2%}")

# %% [markdown]
# What training moved: `tensorboard --logdir digits/tensorboard` shows it epoch by epoch.

# %%
plots.activation_ranges(before, levels.activation_ranges(low_bit))

# %%
plots.latent_weights(low_bit, ["stage1_block1_1_conv", "stage2_block1_1_conv", "head"])

# %% [markdown]
# ## What it costs

# %%
summary = dlqat_tf.summary(low_bit)
plots.summary(summary)

# %% [markdown]
# ## The file, and the proof

# %%
export = dlqat_tf.export.to_tflite(low_bit, folder / "digits.tflite", force=True)
plots.export_report(export)

# %% [markdown]
# The snapped model has the file's biases. Every layer of the file gives the integers that the
# simulation expects, and every decision is the one that Keras makes.

# %%
snapped = tf.keras.models.load_model(export.snapped, compile=False)
pixels = np.rint(255 * test_images).astype(np.uint8)
parity = dlqat_tf.export.parity(snapped, export.path, pixels, test_labels, trained=low_bit)
print(parity.failures() or "nothing differs", parity.top1)
plots.parity(parity)
