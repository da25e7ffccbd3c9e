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
# # Three losses and their clusters
#
# Cross-entropy tells classes apart; the additive margin (AMS) and the Gaussian mixture with a
# margin (GML) also make them compact. The same W1A2 network learns digits by each, and we look at
# what its classifier reads.

# %%
import numpy as np

import dlqat_tf
from dlqat_tf import analysis, plots
from dlqat_tf.training import data

import tensorflow as tf  # isort: skip

# %% tags=["parameters"]
width = 8
epochs = 30
tsne_iterations = 1000

# %%
digits = data.load("digits")
test_images, test_labels = (
    np.concatenate(part) for part in zip(*digits.test_batches(64).as_numpy_iterator(), strict=True)
)
steps = digits.steps_per_epoch(64)
losses = {
    "CEL": ("linear", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "AMS": ("cosine", dlqat_tf.AMSLoss()),
    "GML": ("gml", dlqat_tf.GMLoss(fit_power=4.0)),
}

# %% [markdown]
# ## Training
#
# Each network starts from the same seed and sees the same images in the same order.

# %%
networks = {}
for name, (head, loss) in losses.items():
    tf.keras.utils.set_random_seed(0)
    model = dlqat_tf.resnet18(
        digits.num_classes,
        digits.image_shape,
        weight_bits=1,
        activation_bits=2,
        head=head,
        width=width,
        alpha_init=2.0,
        final_gain=0.15,
    )
    schedule = tf.keras.optimizers.schedules.CosineDecay(0.05, steps * epochs)
    model.compile(tf.keras.optimizers.SGD(schedule, momentum=0.9), loss, metrics=["accuracy"])
    model.fit(
        digits.train_batches(64, seed=0, augment=("crop",)),
        steps_per_epoch=steps,
        epochs=epochs,
        verbose=0,
    )
    networks[name] = model
    print(f"{name}: {model.evaluate(test_images, test_labels, verbose=0)[1]:.2%}")

# %% [markdown]
# ## Clusters in figures
#
# Separation is the mean distance of two class means over the spread within a class. It does not
# depend on the scale of the features, so the three can be compared by it.

# %%
features = {name: analysis.features(model, test_images) for name, model in networks.items()}
statistics = {
    name: analysis.cluster_statistics(each, test_labels) for name, each in features.items()
}
for name, each in statistics.items():
    print(f"{name}: separation {each.separation:.2f}, linear probe {each.probe_accuracy:.2%}")

# %% [markdown]
# ## And as a picture
#
# t-SNE shows neighbours, not distances: trust the figures above.

# %%
panels = [
    (name, analysis.embed(each, iterations=tsne_iterations)) for name, each in features.items()
]
plots.embeddings(panels, test_labels, columns=3)

# %% [markdown]
# ## What GML's gradient does
#
# One part separates classes, the other one pulls each feature to its mean. The margin grows with
# how well the network fits.

# %%
gml = networks["GML"]
mixture = analysis.mixture_statistics(
    features["GML"], test_labels, gml.layers[-1].means, losses["GML"][1]
)
mixture.print()
