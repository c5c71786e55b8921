"""Convert stored grey DICOM samples to display values: DICOM PS3.3, C.11.1 (modality) and C.11.2 (window)."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def show_grey(samples: np.ndarray, header: Any, frame: int) -> np.ndarray:
    """Rescale, apply the first window or table, and turn MONOCHROME1 over.

    Args:
        samples: stored integers [height, width].
        header: a pydicom data set.
        frame: from 0; with functional groups each frame has its own rescaling and window.

    Returns:
        uint8 [height, width]; 255 is white.
    """
    rescaled, is_rescaled = _rescale(samples, header, frame)
    window = _group(header, frame, "FrameVOILUTSequence") or header
    center, width = _first(window, "WindowCenter"), _first(window, "WindowWidth")
    if window.get("VOILUTSequence"):
        shown = _through_table(rescaled, window)
    elif center is not None and width is not None:
        shown = apply_window(rescaled, center, width, str(window.get("VOILUTFunction") or "LINEAR"))
    elif header.BitsStored <= 8 and not header.PixelRepresentation and not is_rescaled:
        shown = samples / ((1 << header.BitsStored) - 1)
    else:
        shown = _stretch(rescaled, samples != header.PixelPaddingValue if "PixelPaddingValue" in header else None)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.asarray(np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8))


def apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Values of the modality -> 0 to 1, by C.11.2.1.2 and C.11.2.1.3.

    Args:
        values: any shape.
        center: of the window.
        width: of the window, at least 1 for LINEAR and above 0 for the others; a smaller one is a threshold.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".
    """
    if function == "SIGMOID" and width > 0:
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function != "LINEAR_EXACT":
        center, width = center - 0.5, width - 1
    if width <= 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _rescale(samples: np.ndarray, header: Any, frame: int) -> tuple[np.ndarray, bool]:
    """Stored samples -> values of the modality, and whether the file says how."""
    group = _group(header, frame, "PixelValueTransformationSequence") or header
    if group.get("ModalityLUTSequence"):
        processing = importlib.import_module("pydicom.pixels.processing")
        return np.asarray(processing.apply_modality_lut(samples, group), np.float64), True
    slope, intercept = _first(group, "RescaleSlope"), _first(group, "RescaleIntercept")
    if slope is None or intercept is None:
        return samples.astype(np.float64), False
    return samples * float(slope) + float(intercept), (slope, intercept) != (1, 0)


def _through_table(values: np.ndarray, window: Any) -> np.ndarray:
    """Through the first item of a VOI LUT sequence -> 0 to 1."""
    processing = importlib.import_module("pydicom.pixels.processing")
    bits = int(window.VOILUTSequence[0].LUTDescriptor[2])
    looked_up = processing.apply_voi(np.rint(values).astype(np.int64), window, 0)
    return np.asarray(looked_up / ((1 << bits) - 1))


def _stretch(values: np.ndarray, is_picture: np.ndarray | None) -> np.ndarray:
    """From the lowest to the highest value, of those that are no padding -> 0 to 1."""
    counted = values if is_picture is None or not is_picture.any() else values[is_picture]
    low, high = counted.min(), counted.max()
    if low == high:
        return np.zeros(values.shape)
    return np.asarray((values - low) / (high - low))


def _group(header: Any, frame: int, name: str) -> Any:
    """The functional group of a frame, its own or the one that all share; None where there is none."""
    own, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in (own[frame] if own and frame < len(own) else None, shared[0] if shared else None):
        if groups is not None and groups.get(name):
            return groups.get(name)[0]
    return None


def _first(dataset: Any, name: str) -> float | None:
    """The first of an element's numbers."""
    value = dataset.get(name)
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)
