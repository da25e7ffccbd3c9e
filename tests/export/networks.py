"""Small networks with random weights and statistics, and images to run them on."""

import larq as lq
import numpy as np
import tensorflow as tf
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import dlqat_tf
from dlqat_tf import CGPACT, SATWeights

layers = tf.keras.layers

settings.register_profile(
    "export",
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking a network takes minutes
)
settings.load_profile("export")


def small_network(weight_bits=2, activation_bits=2, residual_bits=8, channels=8):
    """A convolution, an add whose branches are rounded, and a head."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    x = convolution(inputs, channels, 3, weight_bits=8, name="first")
    x = shortcut = CGPACT(activation_bits, 2.0, name="first_act")(x)
    x = convolution(x, channels, 3, weight_bits=weight_bits, name="second")
    if residual_bits:
        x = CGPACT(residual_bits, 3.0, signed=True, name="second_residual")(x)
    x = CGPACT(activation_bits, 2.0, name="sum_act")(layers.Add(name="sum")([x, shortcut]))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5, name="head")(x)))


def siamese_network(
    merge=layers.Concatenate, *, nested=False, shapes=((6, 6, 3), (6, 6, 3)), bits=2, channels=8
):
    """One tower of two convolutions on two images, merged, and a head."""
    inputs = [tf.keras.Input(shapes[0], name="left"), tf.keras.Input(shapes[1], name="right")]
    tower = [
        quantized(channels, 8, name="first"),
        layers.BatchNormalization(name="first_bn"),
        CGPACT(bits, 2.0, name="first_act"),
        quantized(channels, bits, name="second"),
        layers.BatchNormalization(name="second_bn"),
        CGPACT(bits, 2.0, name="second_act"),
    ]
    if nested:
        tower = [tf.keras.Sequential(tower, name="tower")]
    outputs = []
    for x in inputs:
        for layer in tower:
            x = layer(x)
        outputs.append(x if shapes[0] == shapes[1] else layers.GlobalAveragePooling2D()(x))
    # Of the ranges before, means of few codes would often end halfway between two codes.
    x = CGPACT(bits, 1.73, name="merged_act")(merge(name="merged")(outputs))
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    return randomize(tf.keras.Model(inputs, dlqat_tf.LinearHead(5, name="head")(x)))


def quantized(filters, bits, **options):
    return lq.layers.QuantConv2D(
        filters, 3, padding="same", kernel_quantizer=SATWeights(bits), **options
    )


def convolution(x, filters, size, strides=1, padding="same", *, weight_bits, name=None, **options):
    convolve = lq.layers.QuantConv2D(
        filters,
        size,
        strides,
        padding,
        kernel_quantizer=SATWeights(weight_bits),
        name=name,
        **options,
    )
    return layers.BatchNormalization(name=None if name is None else f"{name}_bn")(convolve(x))


def depthwise(x, size, strides, padding, multiplier, weight_bits):
    convolve = lq.layers.QuantDepthwiseConv2D(
        size,
        strides,
        padding,
        depth_multiplier=multiplier,
        depthwise_quantizer=SATWeights(weight_bits),
        use_bias=False,
    )
    return layers.BatchNormalization()(convolve(x))


def randomize(model: tf.keras.Model, seed: int = 0) -> tf.keras.Model:
    """Give every batch norm gains of both signs and statistics near those of its input."""
    rng = np.random.default_rng(seed)
    images = tf.nest.map_structure(lambda each: each / 255, images_for(model, 8, seed))
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            randomize_norms(layer, rng)
        if isinstance(layer, layers.BatchNormalization):
            values = tf.keras.Model(model.inputs, layer.get_input_at(0))(images).numpy()
            randomize_norm(layer, rng, values.std() + 1e-3)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    return model


def randomize_norms(model, rng):
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            randomize_norm(layer, rng, 1.0)


def randomize_norm(layer, rng, deviation):
    size = layer.moving_mean.shape
    if layer.scale:
        layer.gamma.assign(rng.uniform(0.5, 1.5, size) * rng.choice([-1, 1], size, p=[0.3, 0.7]))
    if layer.center:
        layer.beta.assign(rng.normal(0.5, 0.7, size))
    layer.moving_mean.assign(rng.normal(0, 0.3 * deviation, size))
    layer.moving_variance.assign((deviation * rng.uniform(0.5, 1.5, size)) ** 2)


def images_for(model: tf.keras.Model, count: int = 8, seed: int = 0):
    """Return an array of images, or a list of one for each input."""
    rng = np.random.default_rng(seed)
    shapes = [(count, *tensor.shape[1:]) for tensor in model.inputs]
    arrays = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    return arrays if len(arrays) > 1 else arrays[0]


def draw_network(draw, binary=False):
    """Draw a network of one to four blocks; ``binary`` draws widths that binary kernels run."""
    bits = st.integers(1, 3 if binary else 8)
    alphas = st.sampled_from([0.7, 1.0, 1.9, 3.3])
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    paddings = st.sampled_from(["same", "valid"])

    def activation(x):
        return CGPACT(draw(bits), draw(alphas))(x)

    def residual(x):
        return CGPACT(8 if binary else draw(st.integers(2, 8)), draw(alphas), signed=True)(x)

    shape = (draw(st.integers(7, 10)), draw(st.integers(7, 10)), draw(st.integers(1, 4)))
    inputs = tf.keras.Input(shape)
    x = inputs
    if draw(st.integers(0, 3)) == 3:  # pixels that were prepared, or values that are none
        mean, reverse = draw(st.sampled_from([0.0, 0.5, 0.447])), draw(st.booleans())
        prepared = dlqat_tf.Preprocessing(mean, draw(alphas), reverse_channels=reverse)
        prepared = draw(st.sampled_from([prepared, prepared, None]))
        x = dlqat_tf.InputQuantizer(8, draw(alphas), mean > 0, prepared)(x)
    x = activation(convolution(x, draw(st.integers(1, 9)), 3, weight_bits=8))
    if draw(st.integers(0, 3)) == 3:  # the same layers on a second image
        tower, inputs = tf.keras.Model(inputs, x), [inputs, tf.keras.Input(shape)]
        x = layers.Concatenate()([x, tower(inputs[1])])
    kinds = ["convolution", "add", "concatenate", "max_pool"]
    kinds += [] if binary else ["depthwise", "average_pool", "pad", "shortcut", "dilated"]
    drawn = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    for kind in ["convolution", *drawn] if binary else drawn:
        channels = x.shape[-1]
        if min(x.shape[1:3]) < 3:
            break
        if kind == "convolution":
            strides = draw(st.sampled_from([1, 2]) if binary else st.sampled_from([1, 2, (1, 2)]))
            x = convolution(
                x,
                draw(st.integers(1, 9)),
                draw(sizes),
                strides,
                draw(paddings),
                weight_bits=draw(bits),
                use_bias=draw(st.booleans()),
            )
            x = activation(x)
        elif kind == "dilated":
            x = activation(convolution(x, 4, 2, weight_bits=draw(bits), dilation_rate=2))
        elif kind == "depthwise":
            strides, multiplier = draw(st.integers(1, 2)), draw(st.integers(1, 2))
            x = activation(
                depthwise(x, draw(sizes), strides, draw(paddings), multiplier, draw(bits))
            )
        elif kind == "add":
            branch = residual(convolution(x, channels, 3, weight_bits=draw(bits)))
            x = activation(layers.Add()([branch, x] if draw(st.booleans()) else [x, branch]))
        elif kind == "shortcut":
            branch = residual(convolution(x, 5, draw(sizes), 2, weight_bits=draw(bits)))
            other = residual(convolution(x, 5, 1, 2, weight_bits=draw(bits)))
            x = activation(layers.Add()([branch, other]))
        elif kind == "concatenate":
            first, second = (
                convolution(x, draw(st.integers(1, 5)), 1, weight_bits=1) for _ in "ab"
            )
            if binary or draw(st.booleans()):
                x = activation(layers.Concatenate()([first, second]))
            else:  # two grids, which the file brings to one
                x = layers.Concatenate()([activation(first), activation(second)])
        elif kind == "max_pool":
            x = layers.MaxPool2D(draw(sizes), draw(st.integers(1, 2)), draw(paddings))(x)
        elif kind == "average_pool":
            x = activation(layers.AveragePooling2D(2, draw(st.integers(1, 2)))(x))
        elif kind == "pad":
            x = layers.ZeroPadding2D(((0, 1), (2, 1)))(x)
            x = activation(convolution(x, 3, 3, 1, "valid", weight_bits=draw(bits)))
    x = layers.GlobalAveragePooling2D()(x) if draw(st.booleans()) else layers.Flatten()(x)
    heads = [dlqat_tf.LinearHead, dlqat_tf.CosineHead, dlqat_tf.GaussianMixtureHead]
    x = draw(st.sampled_from(heads))(4)(x)
    return randomize(tf.keras.Model(inputs, x), draw(st.integers(0, 1000)))
