"""Nodes with weights, and an image, of a few numbers."""

import numpy as np

from dlqat_tf.export.integer.nodes import (
    Convolution,
    Dense,
    TransposedConvolution,
)


def dense(weights, step, bias):
    weights = np.asarray(weights, np.int16)
    return Dense(
        name="dense",
        weights=weights,
        step=np.float32(step),
        bias=np.float64(bias),
        bits=8,
        kernel="int8",
    )


def convolution(weights, **options):
    weights = np.asarray(weights, np.int16)
    channels = (
        weights.shape[2] * weights.shape[3] if "is_depthwise" in options else weights.shape[3]
    )
    values = dict(step=np.ones(channels, np.float32), bias=np.zeros(channels), bits=8)
    options = dict(name="conv", inputs=("images",), kernel="int8") | values | options
    return Convolution(weights=weights, **options)


def image(rows):
    return np.array(rows, np.float32)[np.newaxis, :, :, np.newaxis]


def transposed(weights, strides, padding="valid", **options):
    weights = np.asarray(weights, np.int16)
    channels = weights.shape[-1]
    around = dict(step=np.full(channels, 0.01, np.float32), bias=np.zeros(channels), bits=8)
    return TransposedConvolution(
        name="grow",
        inputs=("images",),
        weights=weights,
        strides=strides,
        padding=padding,
        **{**around, **options},
    )
