"""What was seen of a source and of the new model on images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from dlqat_tf.convert.calls import Call
from dlqat_tf.convert.moments import Moments
from dlqat_tf.convert.place import Place


@dataclass
class Measured:
    """What was seen on images.

    Attributes:
        samples: Values of the source where each quantizer will stand.
        moments: Of what each batch norm of the source, or inserted one, reads, by its first call.
        predictions: Classes by each classifier of the source that becomes a head.
        ranges: By quantizer.
        features: What each new head reads.
        notes: What the user should know of the source.
    """

    samples: dict[Place, list[np.ndarray]]
    moments: dict[Call, Moments] = field(default_factory=lambda: defaultdict(Moments))
    predictions: dict[Call, list[int]] = field(default_factory=lambda: defaultdict(list))
    ranges: dict[str, float] = field(default_factory=dict)
    features: dict[Call, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
