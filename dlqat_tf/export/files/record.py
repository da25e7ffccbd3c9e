"""What export says of a .tflite file in the file: what its codes mean, what it was made of."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from tensorflow.lite.python import schema_py_generated as schema

from dlqat_tf._host import UNPARSED
from dlqat_tf.export.files.flatbuffer import metadata
from dlqat_tf.export.integer.errors import ExportError

METADATA = "dlqat_tf"  # the entry of the file
_CHECKSUM = "crc32"


def encode_record(record: dict) -> bytes:
    """Return what export records in a file, with a checksum of its own.

    Nothing else tells a changed digit from the right one, and every value in it decides what the
    codes of the file mean.
    """
    return _encoded({**record, _CHECKSUM: zlib.crc32(_encoded(record))})


def _encoded(record: dict) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def read_record(model: schema.ModelT, path: str | Path) -> dict | None:
    """Return what export recorded in a file, None in a file that it did not write.

    Raises:
        ExportError: The record is not as it was written.
    """
    data = metadata(model, METADATA)
    if data is None:
        return None
    try:
        record = json.loads(data)
        whole = record.pop(_CHECKSUM) == zlib.crc32(_encoded(record))
    except (*UNPARSED, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise ExportError(
            f"The record in {path} is damaged, or of another version of this package: export it "
            "again."
        )
    return record
