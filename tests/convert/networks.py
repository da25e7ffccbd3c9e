"""Small float models, and images to run them on."""

import numpy as np
import tensorflow as tf

layers = tf.keras.layers
Model = tf.keras.Model


FLOAT = dict(weight_bits=32, activation_bits=32, residual_bits=32)
IMAGES = np.random.default_rng(0).random((12, 6)).astype(np.float32)  # of `classifier`


def conv_norm(x, filters, size, strides=1, name=None):
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(momentum=0.9, name=name and f"{name}_bn")(x)


def settle(model, images):
    """Give the batch norms of a model that was not trained the statistics of images."""
    norms = [each for each in model.submodules if isinstance(each, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def mobile():
    """Depthwise convolutions, ReLU6 and linear bottlenecks, one of them added."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.ReLU(6.0, name="stem_relu")(conv_norm(inputs, 8, 3, name="stem"))
    for i, (filters, strides) in enumerate([(8, 1), (16, 2)]):
        y = layers.ReLU(6.0, name=f"expand{i}_relu")(conv_norm(x, 24, 1, name=f"expand{i}"))
        y = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"depth{i}")(y)
        y = layers.BatchNormalization(momentum=0.9, name=f"depth{i}_bn")(y)
        y = layers.ReLU(6.0, name=f"depth{i}_relu")(y)
        y = conv_norm(y, filters, 1, name=f"project{i}")
        x = layers.Add(name=f"add{i}")([x, y]) if strides == 1 else y
    x = layers.ReLU(6.0, name="last_relu")(conv_norm(x, 32, 1, name="last"))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D(name="features")(x))
    return Model(inputs, layers.Dense(10, activation="softmax", name="predictions")(x))


def residual():
    """Post-activation blocks, biases before batch norms, a separate softmax."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.ReLU(name="stem_relu")(conv_norm(inputs, 8, 3, name="stem"))
    for i, strides in enumerate([1, 2]):
        y = layers.Activation("relu", name=f"inner{i}")(conv_norm(x, 8 * strides, 3, strides))
        y = layers.Conv2D(8 * strides, 3, padding="same", name=f"outer{i}")(y)
        y = layers.BatchNormalization(momentum=0.9, scale=False, name=f"outer{i}_bn")(y)
        x = x if strides == 1 else conv_norm(x, 16, 1, 2, name="shortcut")
        x = layers.ReLU(name=f"sum_relu{i}")(layers.Add(name=f"add{i}")([x, y]))
    x = layers.Dense(10, name="predictions")(layers.GlobalAveragePooling2D(name="features")(x))
    return Model(inputs, layers.Softmax(name="softmax")(x))


def vgg():
    """Sequential, no batch norm, a hidden dense layer."""
    return tf.keras.Sequential(
        [
            layers.InputLayer((8, 8, 1), name="images"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(16, 3, padding="same", activation=tf.nn.relu6, name="conv2"),
            layers.MaxPool2D(name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(32, activation="relu", name="hidden"),
            layers.Dropout(0.1),
            layers.Dense(10, name="predictions"),
        ]
    )


def classifier(features=6, classes=3, **options):
    inputs = tf.keras.Input((features,), name="images")
    initializer = tf.keras.initializers.RandomNormal(seed=1)
    dense = layers.Dense(
        classes,
        name="scores",
        bias_initializer=initializer,
        kernel_initializer=initializer,
        kernel_regularizer=tf.keras.regularizers.L2(0.1),
        **options,
    )
    return Model(inputs, dense(inputs))


def two_inputs():
    """One stem for two images, a ReLU object used everywhere, features side by side."""
    left, right = (tf.keras.Input((8, 8, 1), name=name) for name in ("left", "right"))
    stem, norm = layers.Conv2D(4, 3, name="stem"), layers.BatchNormalization(name="norm")
    relu = layers.ReLU(name="relu")
    each = [relu(norm(stem(x))) for x in (left, right)]
    each[1] = relu(layers.Conv2D(4, 3, padding="same", name="own")(each[1]))
    each = [layers.GlobalAveragePooling2D()(x) for x in each]
    x = layers.Dense(8, activation="relu", name="mixed")(layers.Concatenate()(each))
    return Model([left, right], layers.Dense(3, name="scores")(x))


def levels(norm=False):
    """One convolution on two scales, as in the heads of detectors, each with its own grids."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    fine = layers.ReLU(name="fine")(conv_norm(inputs, 4, 3, name="stem"))
    coarse = layers.ReLU(name="coarse")(conv_norm(layers.MaxPool2D()(fine), 4, 3, name="next"))
    head = layers.Conv2D(4, 3, padding="same", use_bias=not norm, name="head")
    after = layers.BatchNormalization(name="head_norm") if norm else lambda x: x
    each = [layers.ReLU(name=f"relu{i}")(after(head(x))) for i, x in enumerate((fine, coarse))]
    each = [layers.GlobalAveragePooling2D()(x) for x in each]
    return Model(inputs, layers.Dense(3, name="scores")(layers.Concatenate()(each)))


def siamese():
    """One tower for two images, its features side by side before a hidden dense layer."""
    inputs = [tf.keras.Input((8, 8, 1), name=name) for name in ("left", "right")]
    tower = tf.keras.Sequential(name="tower")
    for name, filters in (("stem", 8), ("body", 16)):
        tower.add(layers.Conv2D(filters, 3, padding="same", name=name))
        tower.add(layers.BatchNormalization(momentum=0.9, name=f"{name}_bn"))
        tower.add(layers.ReLU(name=f"{name}_relu"))
    pools = [layers.GlobalAveragePooling2D(name=f"pool{i}") for i in range(2)]
    features = [pool(tower(image)) for pool, image in zip(pools, inputs, strict=True)]
    x = layers.Dense(16, activation="relu", name="hidden")(
        layers.Concatenate(name="both")(features)
    )
    return Model(inputs, layers.Dense(4, name="scores")(x))


def transfer():
    """A network without its top, nested in a new classifier."""
    inputs = tf.keras.Input((8, 8, 1), name="images")
    x = layers.ReLU(name="stem_relu")(conv_norm(inputs, 8, 3, name="stem"))
    y = layers.ReLU(name="inner_relu")(conv_norm(x, 8, 3, name="inner"))
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, conv_norm(y, 8, 3, name="outer")]))
    base = Model(inputs, x, name="base")
    pool = layers.GlobalAveragePooling2D(name="features")
    return tf.keras.Sequential(
        [base, pool, layers.Dense(4, activation="softmax", name="scores")], name="transfer"
    )


def predictions(model, images):
    return model.predict(images, verbose=0).argmax(1)


def quantizer_of(layer):
    depthwise = getattr(layer, "depthwise_quantizer", None)
    return depthwise or getattr(layer, "kernel_quantizer", None)


def alive(model, shape, seed=0):
    """Give an untrained model's batch norms the statistics of random images, and return those."""
    images = np.random.default_rng(seed).integers(0, 256, shape).astype(np.float32) / 255
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)
    return images


def detector(activation, **options):
    """A convolution that finds objects on two scales, the smaller one behind an activation."""
    inputs = tf.keras.Input((6, 6, 3), name="images")
    large = layers.ReLU(name="large")(layers.Conv2D(4, 3, name="first")(inputs))
    small = layers.Activation(activation, name="small")(layers.Conv2D(4, 3, name="second")(large))
    last = layers.Conv2D(2, 1, bias_initializer="random_normal", name="objects", **options)
    found = [layers.Reshape((-1, 2))(last(x)) for x in (large, small)]
    x = layers.Concatenate(axis=1, name="all")(found)
    return Model(inputs, layers.Activation("sigmoid", name="scores")(x))
