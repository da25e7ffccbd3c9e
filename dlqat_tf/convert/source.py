"""Runs the model that is converted on images, before there is anything to compare it with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dlqat_tf._progress import steps
from dlqat_tf.convert.calls import Call, take
from dlqat_tf.convert.images import Data
from dlqat_tf.convert.measured import Measured
from dlqat_tf.convert.moments import averaged, distance, is_settled, settled
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.place import Place
from dlqat_tf.quantizers.calibration import SAMPLE, subsample, typical


class Source:
    """The model that is converted, as its network of calls."""

    def __init__(self, network: Network):
        self._network = network
        self._settled: dict[tf.keras.layers.Layer, tf.keras.layers.Layer] = {}
        self._linear: dict[tf.keras.layers.Layer, tf.keras.layers.Layer] = {}

    def current(self, layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        """Return a layer, or what :meth:`settle` put in its place."""
        return self._settled.get(layer, layer)

    def settle(self, data: Data) -> str:
        """Give the source's norms the statistics of the images where theirs are far from them.

        Returns:
            What was changed and why, or nothing.
        """
        copies = self._with_statistics(data)
        distances = {norm: distance(norm, copy) for norm, copy in copies.items()}
        furthest = max(distances, key=distances.get, default=None)
        if furthest is None or is_settled(distances[furthest], len(data)):
            return ""
        before = self.run(data, ()).predictions
        self._settled = copies
        after = self.run(data, ()).predictions
        predictions = ""
        labels = {call: data.labels[end.output] for call, end in self._network.heads.items()}
        labels = {call: each for call, each in labels.items() if each is not None}
        if labels:
            rates = [
                np.mean([np.equal(each[call], right) for call, right in labels.items()])
                for each in (before, after)
            ]
            predictions = f"It is right on {rates[0]:.1%} of the images, there on {rates[1]:.1%}. "
        elif after:
            share = np.mean([np.equal(before[call], after[call]) for call in after])
            predictions = f"Its classes are those of training mode for {share:.1%} of the images. "
        name = self._network.of[furthest][0].name
        return (
            f"In inference mode the source computes other values than in training mode: on these "
            f"images the averages of {name!r} are off by {distances[furthest]:.2g} standard "
            f"deviations. {predictions}They have not settled, or the images are not like those "
            "that it was trained on. The result starts from the statistics of these images, as "
            "training does."
        )

    def _with_statistics(self, data: Data) -> dict:
        """Return copies of the source's norms that have the statistics of the images.

        As in training: each call of a norm has the statistics of what it reads, and the averages
        are those of all calls. Norms that are frozen keep theirs in training too, and are left out.
        """
        network, copies = self._network, defaultdict(list)  # one for each call
        batches = zip(*data, strict=True)  # by input of the model
        values = {(call, 0): each for call, each in zip(network.inputs, batches, strict=True)}
        for call in steps("statistics of the model, layer", network.calls):
            if call.role == "input":
                continue
            batches = list(zip(*take(values, call), strict=True))
            is_frozen = not call.trainable or call.training is False
            layer = call.layer
            if call.role == "norm" and not is_frozen:
                layer = settled(call.layer, [each for (each,) in batches])
                copies[call.layer].append(layer)
            outputs = zip(*(call.apply(layer, list(each)) for each in batches), strict=True)
            values |= {(call, i): list(each) for i, each in enumerate(outputs)}
        return {norm: averaged(each) for norm, each in copies.items()}

    def run(self, data: Data, places: Iterable[Place]) -> Measured:
        """Run it batch by batch, and return what was seen where quantizers will stand."""
        network = self._network
        measured = Measured({place: [] for place in places})
        generator = np.random.default_rng(0)
        for batch in data:
            share = -(-SAMPLE * len(batch[0]) // len(data))
            values = dict(zip(((call, 0) for call in network.inputs), batch, strict=True))
            for call in steps("the model on images, layer", network.calls):
                if call.role == "input":
                    inputs, outputs = [], [values[call, 0]]
                else:
                    inputs = take(values, call)
                    outputs = call.apply(self.current(call.layer), inputs)
                values |= {(call, i): tensor for i, tensor in enumerate(outputs)}
                place = network.places.get(call)
                if place in measured.samples:
                    measured.samples[place] += [
                        subsample(typical(x.numpy()), share, generator) for x in outputs
                    ]
                if call in network.heads:
                    measured.predictions[call] += list(np.argmax(outputs[0], axis=-1))
                has_norm = call.role == "norm" or network.inserts_norm(call)
                if not has_norm or call is not network.lead(call):
                    continue
                if call.role == "norm":
                    measured.moments[call].add(inputs[0])
                else:
                    measured.moments[call].add(self._linear_output(call, inputs))
        return measured

    def _linear_output(self, call: Call, inputs: list) -> tf.Tensor:
        """Return what a weighted layer of the source computes before its activation."""
        layer = call.layer
        if layer not in self._linear:
            linear = type(layer).from_config({**layer.get_config(), "activation": None})
            linear.build(inputs[0].shape)
            linear.set_weights(layer.get_weights())
            self._linear[layer] = linear
        return self._linear[layer](inputs[0])
