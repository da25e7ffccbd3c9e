"""How much a network's loss rises when its kernels and activations are rounded, by its Hessian."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.kinds import is_softmax
from dlqat_tf.convert.network import Network

FEWEST_PROBES = 2  # a standard error needs a spread


@dataclass(frozen=True)
class Trace:
    """Hutchinson's estimate of a trace of the loss's Hessian.

    Attributes:
        mean: Of the probes.
        standard_error: Of that mean.
    """

    mean: float
    standard_error: float

    @property
    def curvature(self) -> float:
        """The trace as it is used: one that is not told from zero counts as its standard error."""
        return max(self.mean, self.standard_error)


def estimate(samples: np.ndarray) -> Trace:
    """Return mean and standard error of what probes gave."""
    samples = np.asarray(samples, np.float64)
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    return Trace(float(samples.mean()), float(error))


class Curvature:
    r"""Traces of the Hessian of the mean cross-entropy of a float network.

    .. math:: \operatorname{Tr} H = \mathbb{E}_v \, v^\top H v, \qquad v_i = \pm 1

    (Hutchinson 1990; HAWQ-V2, Dong et al. 2020, arXiv 1911.03852). Each probe takes
    two backward passes for all kernels together, and two for all activations; what one kernel's
    probe gives another averages out. The trace of activations is that of an image, averaged.

    Args:
        network: The float model as a list of calls, one output of class scores.
        images: A batch as the model takes it.
        labels: Its classes, integers (images,).
        kernels: By name, the variables whose traces are wanted.
        places: The calls whose outputs' traces are wanted.

    Attributes:
        values: What is at the places, of all images, by call.
    """

    def __init__(
        self,
        network: Network,
        images: np.ndarray,
        labels: np.ndarray,
        kernels: dict[str, tf.Variable],
        places: list[Call],
    ):
        self._network = network
        self._images, self._labels = tf.constant(images), tf.constant(labels)
        self._kernels = kernels
        self._places = places
        self.values = self._run({})[1]

    def _run(self, offsets: dict) -> tuple[tf.Tensor, dict]:
        """Return the loss and what is at the places, ``offsets`` added there."""
        network, seen = self._network, {}
        values = {(network.inputs[0], 0): self._images}
        for call in network.calls:
            if call.role != "input":
                inputs = [values[value] for value in call.inputs]
                outputs = call.apply(call.layer, inputs)
                values |= {(call, i): tensor for i, tensor in enumerate(outputs)}
            if call in self._places:
                seen[call] = values[call, 0]
                if call in offsets:
                    values[call, 0] += offsets[call]
        (output,) = network.outputs
        scores = tf.cast(values[output], tf.float32)
        layer = output[0].layer
        if output[0].role == "softmax" or is_softmax(getattr(layer, "activation", None)):
            scores = tf.math.log(tf.maximum(scores, 1e-30))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self._labels, scores)
        return tf.reduce_mean(losses), seen

    def _products(self, offsets: dict, variables: list, probes: list) -> list[tf.Tensor]:
        """Return the products of the Hessian by ``variables`` with probes."""
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(variables)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(variables)
                loss, _ = self._run(offsets)
            gradients = inner.gradient(
                loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
        return outer.gradient(gradients, variables, probes, tf.UnconnectedGradients.ZERO)

    def samples(self, probes: int, seed: int) -> dict[str | Call, list[float]]:
        """Return what each probe gave, by the names of kernels and the calls of places.

        Args:
            probes: How many, at least 2.
            seed: Of the random signs.
        """
        kernels = list(self._kernels.values())
        places = self._places

        @tf.function
        def of_kernels(signs):
            return _traces(signs, self._products({}, kernels, signs))

        @tf.function
        def of_places(signs):
            zeros = [tf.zeros_like(each) for each in signs]
            offsets = dict(zip(places, zeros, strict=True))
            return _traces(signs, self._products(offsets, zeros, signs))

        generator = np.random.default_rng(seed)
        found: dict[str | Call, list[float]] = {key: [] for key in (*self._kernels, *places)}
        for _ in range(probes):
            if kernels:
                traces = of_kernels([_signs(generator, each.shape) for each in kernels])
                for name, trace in zip(self._kernels, traces, strict=True):
                    found[name].append(float(trace))
            if places:
                traces = of_places([_signs(generator, self.values[each].shape) for each in places])
                for call, trace in zip(places, traces, strict=True):
                    found[call].append(float(trace))
        return found


def _traces(signs: Iterable, products: Iterable) -> list[tf.Tensor]:
    return [tf.reduce_sum(v * product) for v, product in zip(signs, products, strict=True)]


def _signs(generator: np.random.Generator, shape) -> tf.Tensor:
    return tf.constant(2.0 * generator.integers(0, 2, tuple(shape)) - 1.0, tf.float32)
