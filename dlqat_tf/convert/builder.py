"""Builds the new model, gives it the source's weights, and measures both on images."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dlqat_tf import methods
from dlqat_tf._progress import steps
from dlqat_tf.canonical import AUGMENTATIONS
from dlqat_tf.convert.calls import Call, take
from dlqat_tf.convert.head_start import fill_cosine, fill_linear, fill_mixture
from dlqat_tf.convert.images import Data
from dlqat_tf.convert.kinds import QUANTIZED
from dlqat_tf.convert.measured import Measured
from dlqat_tf.convert.merges import fit_merges
from dlqat_tf.convert.moments import Moments
from dlqat_tf.convert.network import Network
from dlqat_tf.convert.report import ConversionError
from dlqat_tf.convert.source import Source
from dlqat_tf.convert.weights import (
    constraint_of,
    kernel_of,
    on_kernel_of,
    projection,
    set_norm,
    started,
)
from dlqat_tf.graph import unique
from dlqat_tf.models.resnet import HEADS
from dlqat_tf.preprocessing import ChannelAffine
from dlqat_tf.quantizers import ActivationQuantizer, SymmetricWeights
from dlqat_tf.quantizers.calibration import set_range

_layers = tf.keras.layers


class Builder:
    """Makes the new model, and gives it the source's weights.

    Attributes:
        model: The result.
        made: What stands for the source's layers and for the quantizers, by these.
    """

    def __init__(self, model, network: Network, method: methods.Method):
        self._method = method
        self._factors: dict[tf.keras.layers.Layer, tuple[np.ndarray, np.ndarray]] = {}
        self._network = network
        self._source = Source(network)
        self.made: dict[object, tf.keras.layers.Layer] = {}
        self._taken = {call.name for call in network.calls}
        self._taken |= {place.name for place in network.places.values()}
        self._absorbing = {norm for norms in network.norms.values() for norm in norms}
        inputs = tf.nest.map_structure(
            lambda tensor: tf.keras.Input(
                tensor.shape[1:], tensor.shape[0], tensor.node.layer.name, tensor.dtype
            ),
            model.input,
        )
        values = {
            (call, 0): tensor
            for call, tensor in zip(network.inputs, tf.nest.flatten(inputs), strict=True)
        }
        for call in network.calls:
            sources = [(call, 0)] if call.role == "input" else call.inputs
            tensors = [values[value] for value in sources]
            for layer in self._steps(call):
                tensors = self._step(call, layer, tensors)
            values |= {(call, i): tensor for i, tensor in enumerate(tensors)}
        outputs = tf.nest.pack_sequence_as(model.output, [values[v] for v in network.outputs])
        self.model = tf.keras.Model(inputs, outputs, name=model.name)

    def _step(self, call: Call, layer, tensors: list) -> list:
        """Apply one of the layers that stand for a call, in a graph or eagerly."""
        if layer is self.made.get(call.layer) and type(layer) is not ChannelAffine:
            return call.apply(layer, tensors)
        mode = call.mode if isinstance(layer, _layers.BatchNormalization) else {}
        return [layer(tensor, **mode) for tensor in tensors]

    def _steps(self, call: Call) -> list[tf.keras.layers.Layer]:
        """Return the layers that stand for a call, one after the other."""
        network, steps = self._network, []
        if call in network.heads:
            steps.append(self._once(call.layer, lambda: self._head(call)))
        elif call.role == "weighted":
            steps.append(self._once(call.layer, lambda: self._weighted(call)))
            if network.inserts_norm(call):
                key = self._lead(call), "norm"
                steps.append(self._once(key, lambda: self._norm(call)))
        elif call.role not in ("input", "relu") and call not in network.dropped:
            key = self._lead(call) if call.role == "norm" else call.layer
            steps.append(self._once(key, lambda: self._copy(call)))
        if not network.trainable(call.layer):
            for layer in steps:
                layer.trainable = False
        place = network.places.get(call)
        return (
            steps
            if place is None
            else [*steps, self._once(place, lambda: place.make(self._method))]
        )

    def _lead(self, call: Call):
        """Return what has one batch norm: the layer of a call, or a later call on other grids."""
        lead = self._network.lead(call)
        return call.layer if lead is self._network.of[call.layer][0] else lead

    def _norms_of(self, layer, *part) -> list[_layers.BatchNormalization]:
        """Return the batch norms that a source layer became, or got as a part of the key."""
        leads = dict.fromkeys(map(self._lead, self._network.of[layer]))
        return [self.made[(lead, *part) if part else lead] for lead in leads]

    def _once(self, key, make):
        """Return the layer that stands for ``key``, made when first asked for."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _copy(self, call: Call):
        layer = call.layer
        if call.affine is not None and type(layer) not in (_layers.Rescaling, *AUGMENTATIONS):
            # Not all of what Keras makes of operators can be saved, and what Normalization layers
            # have adapted to gets lost when a model is copied.
            affine = call.affine
            return ChannelAffine(affine.gain, affine.offset, affine.order, name=call.name)
        try:
            config = {**layer.get_config(), "name": self._name(call)}
            if layer in self._absorbing:
                config |= {"scale": True, "center": True}
            if call.affine is not None:
                config["dtype"] = "float32"  # 16 bits would make fewer values of 256 pixels
            return type(layer).from_config(config)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise ConversionError(
                f"Layer {call.name!r} ({type(layer).__name__}) cannot be copied: {error} Give its "
                "class a get_config that returns the arguments of its __init__."
            ) from error

    def _head(self, call: Call):
        return HEADS[self._network.heads[call].kind](
            call.layer.units,
            self._network.weight_bits(call),
            kernel_regularizer=call.layer.kernel_regularizer,
            name=call.name,
        )

    def _weighted(self, call: Call):
        config = {**call.layer.get_config(), "name": call.name}
        bits = self._network.weight_bits(call)
        if self._network.keeps_scale(call):
            quantizer = SymmetricWeights(bits)
        else:
            quantizer = self._quantizer(call, bits)
            # The kernel has another scale, and so has what the layer computes.
            config |= {name: None for name in config if name.endswith("_constraint")}
            config |= {"activation": None, "activity_regularizer": None}
            config |= {"use_bias": False, "bias_regularizer": None}
            constraint = self._constraint(call, bits)
            config |= {} if constraint is None else {"kernel_constraint": constraint}
        return QUANTIZED[type(call.layer)].from_config(
            {**config, _quantizer_name(call.layer): quantizer}
        )

    def _quantizer(self, call: Call, bits: int):
        """Return what rounds a kernel that a batch norm follows."""
        make = self._method.end_weights if self._is_end(call) else self._method.weights
        try:
            return on_kernel_of(call.layer, make(bits))
        except ValueError as error:
            raise ConversionError(
                f"Layer {call.name!r} cannot have weight_bits={bits} with "
                f"method={self._method.name!r}: {error}"
            ) from None

    def _constraint(self, call: Call, bits: int):
        return None if self._is_end(call) else constraint_of(call.layer, self._method, bits)

    def _is_end(self, call: Call) -> bool:
        return self._network.first(call) or call.layer in self._network.ends

    def _name(self, call: Call) -> str:
        """Return the name of what a call becomes, a new one where its layer became another.

        As a ReLU does that is hidden in one call, where its quantizer has the name, and an output
        of the model in another one.
        """
        places = self._network.places.values()
        if call.layer not in self.made and all(call.name != place.name for place in places):
            return call.name
        name = unique(call.name, self._taken)
        self._taken.add(name)
        return name

    def _norm(self, call: Call):
        name = unique(f"{call.name}_bn", self._taken)
        self._taken.add(name)
        return _layers.BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            dtype=call.layer.dtype_policy,
            name=name,
        )

    def carry_weights(self) -> None:
        """Give every layer but the head the source's weights."""
        for layer, (call, *_) in self._network.of.items():
            made = self.made.get(layer)
            if made is None or layer in self._absorbing or call in self._network.heads:
                continue
            if call.affine is not None:
                continue
            if call.role != "weighted" or self._network.keeps_scale(call):
                for each in self._norms_of(layer) if call.role == "norm" else [made]:
                    each.set_weights(self._source.current(layer).get_weights())
                continue
            variable, axes = kernel_of(layer)
            kernel = np.asarray(variable, np.float64)
            rounding = getattr(made, _quantizer_name(layer))
            constraint = self._constraint(call, rounding.bits)
            start, quantized = started(kernel, axes, rounding, constraint)
            kernel_of(made)[0].assign(start)
            scale = np.ravel(projection(kernel, quantized, axes))
            bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros_like(scale)
            self._factors[layer] = scale, bias
            for norm in self._network.norms[layer]:
                for each in self._norms_of(norm):
                    set_norm(each, self._source.current(norm), scale, bias)
            if not self._network.norms[layer]:
                # Whatever the statistics, this norm computes scale * x + bias.
                for norm in self._norms_of(layer, "norm"):
                    norm.gamma.assign(scale * np.sqrt(1 + norm.epsilon))
                    norm.beta.assign(bias)

    def measure(self, data: Data) -> Measured:
        """Set ranges and the statistics of batch norms on images.

        Ranges start where they lose least on what the source computes. Statistics move by what
        quantization moves them, from the source's to those of the new model, on these images: with
        8 bits that is next to nothing, with few it is what keeps the network alive.

        Where the source's averages have not settled, it is run with the statistics of the images
        in their place, since training goes on with those of its batches: what fits averages that
        have just begun to follow fits nothing.
        """
        note = self._source.settle(data)
        if note:
            self.carry_weights()  # those of norms have changed
        rounding = {
            place: made
            for place, made in self.made.items()
            if isinstance(made, ActivationQuantizer) and made.bits != 32 and place.range is None
        }
        measured = self._source.run(data, rounding)
        for place, made in steps("range", rounding.items()):
            values = np.float32(np.concatenate(measured.samples[place]))  # of 16 bits too
            if place.has_zero_point:
                made.signed, made.zero_point = False, -place.codes(values).lowest
            if made.range_of_images is not None:
                measured.ranges[made.name] = set_range(made, values)
            else:
                made.start(values)
        fit_merges(self._network, self.made, measured.ranges)
        measured.features = self._run_result(data, measured.moments)
        if note:
            measured.notes.append(note)
        return measured

    def _run_result(self, data: Data, moments: dict) -> dict[Call, np.ndarray]:
        """Run the new model layer by layer, correct its batch norms, and return heads' features."""
        network, features = self._network, {}
        batches = list(zip(*data, strict=True))  # by input of the model
        values = {(call, 0): each for call, each in zip(network.inputs, batches, strict=True)}
        for call in steps("the result on images, layer", network.calls):
            if call in network.dropped:  # after heads, which have no weights yet
                continue
            inputs = [values[call, 0]] if call.role == "input" else take(values, call)
            if call in network.heads:
                features[call] = np.concatenate(inputs[0])
                continue
            batches = list(zip(*inputs, strict=True))
            for layer in self._steps(call):
                if call in moments and isinstance(layer, _layers.BatchNormalization):
                    self._correct(call, layer, moments.pop(call), batches)
                batches = [self._step(call, layer, list(tensors)) for tensors in batches]
            outputs = zip(*batches, strict=True)
            values |= {(call, i): list(each) for i, each in enumerate(outputs)}
        return features

    def _correct(self, call: Call, norm, source: Moments, batches: list) -> None:
        """Move a norm's statistics by what quantization moved those of its inputs."""
        of = call.layer if call.role == "weighted" else call.inputs[0][0].layer
        is_scaled = call.role == "weighted" or call.layer in self._absorbing
        scale, bias = self._factors[of] if is_scaled else (np.ones(()), np.zeros(()))
        divisor = np.where(scale > 0, scale, 1.0)
        mean, variance = (source.mean - bias) / divisor, source.variance / divisor**2
        if call.role == "weighted":  # inserted: it has no statistics yet
            set_norm(norm, norm, 1.0, 0.0, mean, variance)
        result = Moments()
        for tensors in batches:
            result.add(tensors[0])
        alive = (scale > 0) & (variance > 0) & (result.variance > 0)
        shift = np.where(alive, result.mean - mean, 0.0)
        norm.moving_mean.assign_add(shift)
        ratio = np.where(alive, result.variance / np.where(alive, variance, 1.0), 1.0)
        norm.moving_variance.assign(np.asarray(norm.moving_variance, np.float64) * ratio)

    def fill_head(self, call: Call, measured: Measured | None, labels: np.ndarray | None) -> None:
        """Give a head its weights, from the classifier and from features of the images."""
        kind = self._network.heads[call].kind
        source, made = call.layer, self.made[call.layer]
        kernel = np.asarray(source.kernel, np.float64)
        bias = np.asarray(source.bias, np.float64) if source.use_bias else np.zeros(source.units)
        if kind == "linear":
            fill_linear(made, kernel, bias)
            return
        features = None if measured is None else np.float64(measured.features[call])
        if kind == "cosine":
            if measured is not None and labels is None:
                labels = np.asarray(measured.predictions[call])
            fill_cosine(made, kernel, features, labels)
            return
        note = fill_mixture(made, kernel, bias, features, labels)
        if note:
            measured.notes.append(note)


def _quantizer_name(layer) -> str:
    """Return the argument of Larq's layer that rounds the kernel."""
    is_depthwise = isinstance(layer, _layers.DepthwiseConv2D)
    return "depthwise_quantizer" if is_depthwise else "kernel_quantizer"
