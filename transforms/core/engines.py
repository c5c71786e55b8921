"""Names of inference engines. The command line imports this module, so it imports nothing heavy."""

import enum
import os


class Engine(enum.StrEnum):
    """What computes the vectors.

    Keras defines them; at one precision another engine gives the same, but for rounding.
    """

    AUTO = "auto"
    """Whichever is faster on this machine: a trial tells."""
    KERAS = "keras"
    OPENVINO = "openvino"
    """Intel's OpenVINO, on CPUs of any maker."""


class PrecisionChoice(enum.StrEnum):
    """What `--precision` takes: one of `transforms.core.spec.Precision`, or AUTO."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    INT8 = "int8"
    AUTO = "auto"
    """The fastest on this machine whose vectors hardly differ from float32 ones: a trial tells."""


def has_nvidia_gpu() -> bool:
    """Whether the driver of one is loaded: asking a framework would take seconds."""
    return os.path.exists("/dev/nvidiactl")
