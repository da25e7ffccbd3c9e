"""What the messages of an area have in common: what they mean, and what to do about them."""

AREAS = (
    (
        ("dlqat_tf._compat", "dlqat_tf._deferred", "dlqat_tf._litert", "dlqat_command.environment"),
        "Environment",
        "The packages that are installed do not go together, or something imported Keras 3 before "
        "`dlqat_tf`. Run `dlqat env`: it lists the versions and says which of them is wrong. "
        "Import `dlqat_tf` first, leave `TF_USE_LEGACY_KERAS` unset or at `1`, and install with "
        "the constraints of `requirements.lock` where a resolver chose others.",
    ),
    (
        ("dlqat_tf.quantizers", "dlqat_tf.methods", "dlqat_tf._arguments"),
        "Quantizers and methods",
        "An argument is outside of what the method defines, or integers were asked for where there "
        "are none yet. A quantizer has a grid once it was built and, where its range starts from "
        "data, once it was trained for a step. Widths that a paper does not define are refused "
        "rather than guessed: the page of the [method](methods/index.md) has its widths. A range "
        "that is not finite means that training has diverged: go back to weights from before that "
        "and lower the learning rate.",
    ),
    (
        ("dlqat_tf.heads", "dlqat_tf.losses", "dlqat_tf.distillation", "dlqat_tf.models"),
        "Networks, heads, losses, distillation",
        "A head and a loss that do not belong together, labels of another shape, or a setting out "
        "of range. `LinearHead` goes with cross-entropy from logits, `CosineHead` with `AMSLoss`, "
        "`GaussianMixtureHead` with `GMLoss`; the outputs are logits without a softmax. See "
        "[Heads and losses](methods/heads.md).",
    ),
    (
        (
            "dlqat_tf.convert",
            "dlqat_tf.canonical",
            "dlqat_tf.graph",
            "dlqat_tf.float_part",
            "dlqat_tf.preprocessing",
        ),
        "Bringing a model",
        "The float model cannot be converted as asked. The message groups the layers by reason and "
        "ends with the `overrides` that go on without them; `error.overrides` is the same as a "
        "dictionary. Most layers without a quantized form are no error: they stay float as islands "
        "and the report names them. `NoFloatForm` reaches you only as the reason inside of a "
        "`ConversionError` or an `ExportError`. See [Bring a model](guides/bring-a-model.md).",
    ),
    (
        ("dlqat_tf.tfmot",),
        "TF-MOT",
        "A layer or a model that the bridge to TF-MOT cannot quantize. Annotate the layers that it "
        "can, or build the network with this package's own layers; see "
        "[Coming from TF-MOT](coming-from/tf-mot.md).",
    ),
    (
        ("dlqat_tf.loading",),
        "Loading models",
        "The file is no model, was damaged, or would run code when it is loaded. Give `--trust` "
        "(`trust=True`) for files of your own that hold Lambda layers, HDF5 files and SavedModels; "
        "never for files of others. Weights that do not fit are listed with both shapes.",
    ),
    (
        (
            "dlqat_tf.training.data",
            "dlqat_tf.training.sources",
            "dlqat_tf.training.opening",
            "dlqat_tf.training.folder",
            "dlqat_tf.datasets",
        ),
        "Data sets",
        "Images are missing, damaged or not laid out as expected. CIFAR and `imagenet2012` come "
        "from tensorflow-datasets, whose folder `--data-dir` is; `--dataset folder` wants `train/` "
        "and `val/` with a folder for each class. All of it is checked before training starts.",
    ),
    (
        ("dlqat_tf.training", "dlqat_command"),
        "Training and its command",
        "A setting of a recipe that is out of range or does not go with another, an output folder "
        "that another process or another recipe uses, or a training that has diverged. A killed "
        "run needs no clearing up: the same command continues it. `--restart` deletes what is "
        "there. "
        "See [Resume](guides/resume.md).",
    ),
    (
        ("dlqat_tf.export.runtimes",),
        "Running and benchmarking files",
        "The interpreter, the browser or the phone does not do what was asked. For Android: a "
        "phone has to be connected and authorised (`adb devices`), and the benchmark program must "
        "fit the file; the message quotes what the device said.",
    ),
    (
        ("dlqat_tf.export", "dlqat_command.export", "dlqat_command.parity"),
        "Export, parity and census",
        "Export refuses to write a file that would not compute what was trained, and names the "
        "layer. Where the range of an output is unknown, train with `residual_bits=8` or give "
        "calibration images; where a layer has no int8 form, the message says which export has "
        "one. `parity` refuses files of other models and of other versions of this package. See "
        "[Read a parity report](guides/parity.md).",
    ),
    (
        ("",),
        "Everything else",
        "Targets that exist (`force`, `--force`), folders that are missing or cannot be written "
        "to, and arguments out of range.",
    ),
)
