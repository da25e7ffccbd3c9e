"""The one place that knows about Keras versions and about what Keras is made to do otherwise.

Larq and TF-MOT work with Keras 2 only. TensorFlow 2.16 and newer hand out Keras 3 unless
``TF_USE_LEGACY_KERAS`` is ``"1"`` when ``tf.keras`` is first used, so this module must run before
any other import of TensorFlow in the package.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dlqat_tf._stderr import without_notes

_LEGACY = "TF_USE_LEGACY_KERAS"
_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_CALLING = threading.RLock()
_ACCEPTED = ("1", "true", "True")  # the only values that TensorFlow itself accepts


def require_legacy_keras() -> None:
    """Make ``tf.keras`` mean Keras 2, or say in one sentence why that is impossible.

    Raises:
        ImportError: Python is outside 3.10 to 3.12, the variable is set to something else than
            ``"1"``, tf_keras is missing, or ``tf.keras`` already means Keras 3.
    """
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise ImportError(
            "dlqat_tf runs on Python 3.10, 3.11 and 3.12 (the range of larq-compute-engine's "
            f"wheels); this is Python {sys.version_info.major}.{sys.version_info.minor}."
        )
    value = os.environ.setdefault(_LEGACY, "1")
    if value not in _ACCEPTED:
        raise ImportError(
            f"dlqat_tf needs Keras 2, but the environment variable {_LEGACY} is {value!r}: "
            f'unset it or set it to "1".'
        )
    os.environ.setdefault(_LEVEL, "1")  # notes about the start; warnings and errors are shown
    try:
        with without_notes():
            import tf_keras
    except ModuleNotFoundError as error:
        if error.name != "tf_keras":
            raise
        raise ImportError(
            "dlqat_tf needs Keras 2, but the package tf_keras is not installed: "
            "run `pip install tf_keras`."
        ) from None
    with without_notes():
        import tensorflow as tf

    # tf.keras resolves the first time that anybody uses it, so its origin shows who came first.
    if not tf.keras.Model.__module__.startswith("tf_keras"):
        raise ImportError(
            "dlqat_tf needs Keras 2, but tf.keras is already Keras 3 in this "
            f'process: import dlqat_tf before anything that uses Keras, or set {_LEGACY}="1" in '
            "the environment before Python starts."
        )
    # `from tensorflow.keras import ...`, which Larq uses, follows a path that TensorFlow chose when
    # it was imported, which may have been before the variable was set.
    legacy = str(Path(tf_keras.__file__).parent / "api" / "_v2")
    if legacy not in tf.__path__:
        tf.__path__.insert(0, legacy)


def is_keras_3(thing: object) -> bool:
    """Return whether an object is of a class of Keras 3, or of one made from it."""
    return any(base.__module__.split(".")[0] == "keras" for base in type(thing).__mro__)


def check_keras_2_file(path: str | Path, error: type[ValueError] = ValueError) -> None:
    """Raise an error for a ``.keras`` file of Keras 3, none of whose layers Keras 2 loads."""
    try:
        with zipfile.ZipFile(path) as file:
            version = json.loads(file.read("metadata.json"))["keras_version"]
    except Exception:  # whatever a damaged archive leads to
        return  # whoever reads it says what it is
    if str(version).startswith("3."):
        raise error(
            f"Expected a file of Keras 2. Received: {path}, saved by Keras {version}. Build the "
            "model with tf.keras, which is Keras 2 once dlqat_tf is imported, copy the weights in "
            "a Python where both are imported (new.set_weights(old.get_weights())), and save it."
        )


def calling_layer():
    """Return the Keras layer whose call is running, innermost first, or None outside of any."""
    from tf_keras.src.engine import base_layer_utils

    return base_layer_utils.call_context().layer


def in_inference() -> contextlib.AbstractContextManager[None]:
    """Let layers that are called outside of a model compute as in inference, as those in one do.

    Of themselves they would do what their ``training`` has as its default, which is True for those
    that augment images. A call that says its mode keeps it.
    """
    from tf_keras.src import backend

    return backend.deprecated_internal_learning_phase_scope(0)


def convnext_layers() -> tuple[type, type]:
    """Return what Keras's ConvNeXt is made of and Keras has no public name for.

    Returns:
        Its layer scale and its stochastic depth, neither of which Keras finds when it loads a file.
    """
    from tf_keras.src.applications import convnext

    return convnext.LayerScale, convnext.StochasticDepth


def synchronize_by_deviations() -> None:
    """Let Keras's synchronized batch norms measure variances from the mean, as the others do.

    Keras takes the square of the mean from the mean of squares. Of a variance that is small beside
    the mean that leaves rounding errors, which the norm then divides by.
    """
    import tensorflow as tf

    norm = tf.keras.layers.BatchNormalization

    def mean_and_variance(layer, values, axes, keep_dims, mask=None):
        replica = tf.distribute.get_replica_context()
        if not replica:
            return layer._no_sync_calculate_mean_and_var(values, axes, keep_dims, mask=mask)
        weights = tf.ones_like(values)
        if mask is not None:
            weights *= tf.cast(mask, values.dtype)[..., tf.newaxis]

        def total(each):
            return replica.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.reduce_sum(each, axes, keepdims=True)
            )

        count = total(weights)
        mean = tf.math.divide_no_nan(total(weights * values), count)
        # Deviations sum to zero, so that no gradient goes through the mean in them.
        squares = tf.math.squared_difference(values, tf.stop_gradient(mean))
        variance = tf.math.divide_no_nan(total(weights * squares), count)
        if keep_dims:
            return mean, variance
        return tf.squeeze(mean, axes), tf.squeeze(variance, axes)

    norm._sync_calculate_mean_and_var = mean_and_variance


def annotate_operators() -> None:
    """Let operators, as ``x + y`` and slices, be annotated for TF-MOT.

    TF-MOT copies an annotated model to take the annotations off. The copy of a layer is called on
    the tensors that its configuration lists, and on the tensor where that is one alone, but an
    operator on what is listed as it is. What was stored as the annotation of an operator, which is
    a layer, so gave operators a list of their tensor.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_annotate import (
        QuantizeAnnotate,
    )

    QuantizeAnnotate._preserve_input_structure_in_config = property(
        lambda annotation: annotation.layer._preserve_input_structure_in_config,
        lambda annotation, value: None,  # Keras sets what it is for layers
    )


def freeze_wrappers() -> None:
    """Let TF-MOT's frozen wrappers list nothing among what trains.

    TF-MOT reads and sets whether a wrapper is frozen on the layer inside, and lists the kernel and
    what quantizers learn in the wrapper's own weights, which it does not ask about it.
    """
    from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
        QuantizeWrapperV2,
    )

    trained = QuantizeWrapperV2.trainable_weights.fget
    kept = QuantizeWrapperV2.non_trainable_weights.fget

    def all_kept(wrapper):
        own = [] if wrapper.trainable else wrapper._trainable_weights
        return wrapper._dedup_weights([*own, *kept(wrapper)])

    QuantizeWrapperV2.trainable_weights = property(
        lambda wrapper: trained(wrapper) if wrapper.trainable else []
    )
    QuantizeWrapperV2.non_trainable_weights = property(all_kept)


@contextlib.contextmanager
def copies_called() -> Iterator[None]:
    """Let copies of layers be called on Keras tensors, so that the layers stay out of the graph.

    Operators are called as ever. The call of a layer with weights or code, which copies need not
    have, raises a TypeError.
    """
    from tf_keras.src.engine.base_layer import Layer
    from tf_keras.src.layers.core.lambda_layer import Lambda
    from tf_keras.src.layers.core.tf_op_layer import ClassMethod, InstanceProperty, TFOpLambda

    thread = threading.get_ident()

    def call(layer, *arguments):
        is_operator = isinstance(layer, (ClassMethod, InstanceProperty, TFOpLambda))
        if not is_operator and threading.get_ident() == thread:
            if layer.weights or isinstance(layer, Lambda):
                raise TypeError(
                    "Expected a layer without weights or code of its own, so that a copy computes "
                    f"the same. Received: {layer.name!r}. Call it outside of Lambda layers."
                )
            layer = type(layer).from_config(layer.get_config())
        return connected(layer, *arguments)

    with _CALLING:
        connected = Layer._functional_construction_call
        Layer._functional_construction_call = call
        try:
            yield
        finally:
            Layer._functional_construction_call = connected


@contextlib.contextmanager
def unrolled() -> Iterator[None]:
    """Let Keras's loops over time run step by step, also those of layers without such a setting.

    These are convolutional recurrent layers, and TimeDistributed on batches of a known size.
    """
    from tf_keras.src import backend

    with _CALLING:
        loop = backend.rnn
        backend.rnn = lambda *arguments, **options: loop(*arguments, **{**options, "unroll": True})
        try:
            yield
        finally:
            backend.rnn = loop


def with_lambdas():
    """Return a context in which Keras makes layers from functions that are in memory already."""
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    return SafeModeScope(False)


require_legacy_keras()
