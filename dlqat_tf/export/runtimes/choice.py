"""Which runtime runs a file, and whether it can: said before the long work."""

from __future__ import annotations

from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf.export.files import flatbuffer, micro
from dlqat_tf.export.files.assembly import check_choice
from dlqat_tf.export.integer.errors import ExportError
from dlqat_tf.export.integer.rounding import RUNTIMES
from dlqat_tf.export.runtimes import compiled_model, web

_STOCK = ("builtin", "micro", "compiled_model", "web")  # without Larq Compute Engine's operations
_CHECKS = {
    "micro": micro.check,
    "compiled_model": lambda model, path: compiled_model.check(),
    "web": web.check,
}


def chosen(runtime: str | None, model: schema.ModelT, kernels: str, path) -> str:
    """Return the runtime for a file.

    Args:
        runtime: Its name, or None for the one that the file was exported for.
        model: The file's graph.
        kernels: What the file was exported for, "xnnpack" or "builtin".
        path: What errors call the file.

    Raises:
        ExportError: There is no such runtime, it is not installed, or it does not run such files.
    """
    if runtime is None:
        return {"xnnpack": "tflite", "builtin": "builtin"}[kernels]
    check_choice("runtime", runtime, tuple(RUNTIMES))
    if runtime in _STOCK and flatbuffer.is_binarized(model):
        raise ExportError(
            f"{path} has operations of Larq Compute Engine, which run on none but its own "
            f'interpreter: expected runtime="tflite". Received: runtime={runtime!r}.'
        )
    if runtime in _CHECKS:
        _CHECKS[runtime](model, path)
    return runtime
