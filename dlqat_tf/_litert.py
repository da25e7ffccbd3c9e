"""The one place that knows where the TFLite interpreter lives."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from dlqat_tf._stderr import without_notes


def tflite_interpreter(
    model: str | Path | bytes, *, num_threads: int = 1, xnnpack: bool = True, allocate: bool = True
):
    """Open a TFLite interpreter, LiteRT's where ai-edge-litert is installed.

    Args:
        model: Path of a ``.tflite`` file, or its content.
        num_threads: CPU threads the kernels may use.
        xnnpack: Whether the XNNPACK delegate takes the operations that it can, TFLite's default.
        allocate: Whether to allocate the tensors; without, only the file's structure is verified.

    Returns:
        An ``ai_edge_litert.interpreter.Interpreter``, or the ``tf.lite.Interpreter`` that it
        replaces; when allocated ready for ``set_tensor``.

    Raises:
        FileNotFoundError: There is no file at ``model``.
        ValueError: It is not a whole .tflite file.
        RuntimeError: It has operations that TFLite does not know.
    """
    opener, resolvers = _interpreter_classes()
    if isinstance(model, bytes):
        source: dict[str, str | bytes] = {"model_content": model}
    else:
        if not Path(model).is_file():
            raise FileNotFoundError(f"Expected a .tflite file, found nothing at {model}.")
        source = {"model_path": str(model)}
    with warnings.catch_warnings():
        # Whether ai-edge-litert is installed is the user's choice, and need not be advised.
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        interpreter = opener(
            **source,
            num_threads=num_threads,
            experimental_op_resolver_type=resolvers.AUTO
            if xnnpack
            else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    if allocate:
        with without_notes():
            interpreter.allocate_tensors()
    return interpreter


def tflite_version() -> str:
    """Return what :func:`tflite_interpreter` opens, for reports."""
    import tensorflow as tf

    if _litert() is None:
        return f"TFLite {tf.__version__}"
    return f"LiteRT {importlib.import_module('ai_edge_litert').__version__}"


def _interpreter_classes() -> tuple[Any, Any]:
    """Return the class of interpreters and that of their resolvers."""
    import tensorflow as tf

    litert = _litert()
    if litert is None:
        return tf.lite.Interpreter, tf.lite.experimental.OpResolverType
    return litert.Interpreter, litert.OpResolverType


def _litert() -> ModuleType | None:
    """Return LiteRT's module of interpreters, None where ai-edge-litert is not installed."""
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ai_edge_litert":
            raise
        return None
