"""Any quantizer of this package as TF-MOT's."""

from __future__ import annotations

import larq as lq
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from dlqat_tf._compat import calling_layer
from dlqat_tf.quantizers.weight_decay import exempt_from_weight_decay

_api = tfmot.quantization.keras


@tf.keras.utils.register_keras_serializable("dlqat_tf")
class LarqQuantizer(_api.quantizers.Quantizer):
    """Any quantizer of this package behind TF-MOT's interface.

    Its variables are the wrapper's: ``build`` makes them there, and each call gives them back to a
    quantizer of the same settings. So one of these may serve many layers, as TF-MOT's do.

    Args:
        quantizer: A Larq quantizer of this package, or its configuration.
    """

    def __init__(self, quantizer: lq.quantizers.Quantizer | dict):
        if not isinstance(quantizer, dict):
            quantizer = tf.keras.layers.serialize(quantizer)
        self._config = quantizer

    def larq_quantizer(
        self, weights: dict, shape, trainable: bool = True
    ) -> lq.quantizers.Quantizer:
        """Return the Larq quantizer that uses the variables that ``build`` returned.

        Args:
            weights: These variables, by name.
            shape: Of what it rounds.
            trainable: Whether the layer is not frozen.
        """
        quantizer = self._built(shape, lambda name, **_: weights[name])
        if not trainable:
            quantizer.trainable = False
        return quantizer

    def _built(self, shape, add_weight) -> lq.quantizers.Quantizer:
        """Return the quantizer, which asks ``add_weight`` for its variables."""
        quantizer = tf.keras.layers.deserialize(self._config)
        for each in (quantizer, *quantizer.submodules):  # one may hold another
            each.add_weight = add_weight
        quantizer.build(shape)
        return quantizer

    def build(self, tensor_shape, name, layer):
        if isinstance(layer, _api.QuantizeWrapper) and not layer._weight_vars:
            # A layer that was built before it was wrapped has its variables listed by the wrapper
            # too, one built after, as in a loaded or cloned model, has not: the two would differ in
            # number and order, and no stored weights would fit.
            own = {id(variable) for variable in layer.layer.trainable_weights}
            listed = layer._trainable_weights
            listed[:] = [variable for variable in listed if id(variable) not in own]
        weights = {}

        prefix = name

        def add_weight(name, **settings):
            made = layer.add_weight(f"{prefix}_{name}", **settings)
            weights[name] = exempt_from_weight_decay(made)
            return made

        self._built(tensor_shape, add_weight)
        return weights

    def __call__(self, inputs, training, weights, **kwargs):
        layer = calling_layer()
        trainable = layer is None or layer.trainable
        return self.larq_quantizer(weights, inputs.shape, trainable).call(inputs, training=training)

    def get_config(self):
        return {"quantizer": self._config}
