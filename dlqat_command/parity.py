"""Proof that an exported file computes what its Keras model computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dlqat_command.metavars import COUNT, DATASET, FILE, FOLDER, PERCENT


def compare(
    model: Annotated[Path, tyro.conf.Positional],
    file: Annotated[Path, tyro.conf.Positional],
    data: Annotated[str, DATASET],
    trained: Annotated[Path | None, FILE] = None,
    data_dir: Annotated[Path | None, FOLDER] = None,
    images: Annotated[int | None, COUNT] = None,
    runtime: Literal["tflite", "builtin", "micro", "compiled_model", "web"] | None = None,
    trained_agreement: Annotated[float, PERCENT] = 99.5,
    keras_agreement: Annotated[float, PERCENT] = 99.5,
    file_agreement: Annotated[float, PERCENT] = 100.0,
    accuracy: Annotated[float, tyro.conf.arg(metavar="POINTS")] = 0.1,
    json: Annotated[Path | None, FILE] = None,
    trust: bool = False,
    force: bool = False,
) -> None:
    """Prove that an exported file computes what its Keras model computes.

    Runs the trained model, the snapped one, an integer simulation and the file on the test images
    of a data set. Exit status: 0 where all bounds are met, 1 where one is missed, 2 for what you
    can mend, 130 after Ctrl-C.

    Args:
        model: The trained model; the .snapped.keras with the file's biases that export saved beside
            the file is found there and compared too. Or that one.
        file: The .tflite file.
        data: digits, cifar10, cifar100, imagenet2012 or folder.
        trained: The trained model, where the model is a snapped one.
        data_dir: Where the data set lies.
        images: How many test images; all by default.
        runtime: What runs the file: tflite, on this host (Larq Compute Engine where the file is for
            it); builtin, TFLite without XNNPACK; micro, TFLite Micro, which is on microcontrollers
            (pip install 'dlqat_tf[micro]'); compiled_model, LiteRT's newer interface (pip install
            'dlqat_tf[litert]'); or web, LiteRT.js in a headless browser (pip install
            'dlqat_tf[web]', Chromium). By default tflite or builtin, as the file was exported for.
        trained_agreement: Least percentage of arg-maxes that the trained model and the file share.
        keras_agreement: The same for the snapped model and the file.
        file_agreement: The same for simulation and file; at 100 no layer may differ at all.
        accuracy: Largest difference of top-1 between Keras models and file, in points.
        json: Write the report here too.
        trust: Load a model that holds code, such as a Lambda layer, and so run it.
        force: Overwrite the --json file.
    """
    from dlqat_tf._host import write_whole
    from dlqat_tf.export import ExportError, command, parity
    from dlqat_tf.export.parity import as_exported, check_runtime
    from dlqat_tf.loading import load_model
    from dlqat_tf.report import check_target

    bounds = {
        "trained_agreement": trained_agreement,
        "keras_agreement": keras_agreement,
        "file_agreement": file_agreement,
        "accuracy": accuracy,
    }

    def work() -> int:
        for name, bound in bounds.items():
            if not 0 <= bound <= 100:
                raise ExportError(f"Expected {name} from 0 to 100. Received: {bound}.")
        snapped, source = command.snapped_and_trained(model, file, trained)
        if json:
            check_target(json, force=force, beside=[file, snapped, source])
        loaded = as_exported(load_model(snapped, trust=trust), file)
        check_runtime(file, runtime)
        shape = command.image_shape(loaded)
        pixels, labels = command.test_images(data, data_dir, shape, images)
        before = None if source is None else load_model(source, trust=trust)
        report = parity(loaded, file, pixels, labels, trained=before, runtime=runtime)
        report.print()
        if json:
            write_whole(json, report.to_json() + "\n")
        failures = report.failures(**bounds)
        for failure in failures:
            print(f"failed: {failure}", file=sys.stderr)
        return 1 if failures else 0

    command.run(work)
