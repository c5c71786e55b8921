"""Check a requested model before loading Keras: missing files, unknown layers."""

from __future__ import annotations

from transforms import storage
from transforms.core.errors import ImagebeamError
from transforms.models.architectures import Architecture
from transforms.models.config import EmbedderConfig
from transforms.models.layer_tables import check_layer_names
from transforms.models.weights.load import is_file


def check_available(config: EmbedderConfig) -> None:
    """Refuse a model that cannot be had, as far as that is known without loading a framework.

    Raises:
        ImagebeamError: naming the file or the layer.
    """
    if is_file(config.weights):
        try:
            found = storage.exists(storage.absolute(config.weights))
        except OSError as error:
            raise ImagebeamError(
                f"The weights file cannot be read: {error}. Received: weights={config.weights!r}."
            ) from error
        if not found:
            raise ImagebeamError(f"There is no such weights file. Received: weights={config.weights!r}.")
    architecture = config.architecture
    if isinstance(architecture, Architecture) and not architecture.rescales_for_imagenet:
        check_layer_names(architecture.name, config.layers, "layer")
