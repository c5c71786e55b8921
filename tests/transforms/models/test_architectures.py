import inspect
import re
import sys

import keras
import pytest

from transforms.core.errors import ImagebeamError
from transforms.models.architectures import ARCHITECTURES, get_architecture, nearest

# Modules whose sizes stand in their text as literals; the others are held by building them.
_LITERAL = ("VGG16", "VGG19", "ResNet50", "InceptionV3", "InceptionResNetV2", "Xception", "DenseNet121")


def test_every_model_of_keras_applications_is_here():
    in_keras = {
        name
        for name, value in vars(keras.applications).items()
        if inspect.isfunction(value) and "include_top" in inspect.signature(value).parameters
    }
    assert set(ARCHITECTURES) == in_keras
    assert len(ARCHITECTURES) == 40


@pytest.mark.parametrize("name", _LITERAL)
def test_sizes_match_keras_source(name):
    source = inspect.getsource(sys.modules[getattr(keras.applications, name).__module__])
    architecture = get_architecture(name)
    assert re.search(rf"default_size={architecture.default_size}\b", source)
    assert re.search(rf"min_size={architecture.min_size}\b", source)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("EfficientNetB3", 300),
        ("EfficientNetV2B1", 240),
        ("NASNetMobile", 224),
        pytest.param("ConvNeXtTiny", 224, marks=pytest.mark.slow),
    ],
)
def test_default_size_is_the_input_keras_gives_the_full_model(name, size):
    model = getattr(keras.applications, name)(weights=None, include_top=True)
    assert model.input_shape[1:3] == (size, size) == (get_architecture(name).default_size,) * 2


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ImagebeamError, match=r"Received: model='vgg-16'.*VGG16"):
        get_architecture("vgg-16")


def test_a_size_too_small_names_the_minimum():
    with pytest.raises(ImagebeamError, match=r"75x75.*image_size=74x300"):
        get_architecture("InceptionV3").build((74, 300))


def test_smallest_size_is_that_of_keras():
    get_architecture("Xception").build((71, 71))
    with pytest.raises(ValueError, match="at least 71x71"):
        keras.applications.Xception(weights=None, include_top=False, input_shape=(70, 70, 3))


def test_unnamed_layers_are_numbered_as_in_a_new_process():
    keras.layers.Activation("relu")
    names = [[layer.name for layer in get_architecture("MobileNetV3Small").build((64, 64)).layers] for _ in range(2)]
    assert names[0] == names[1]
    assert "activation" in names[0]


def test_building_leaves_the_callers_numbering_alone():
    keras.utils.clear_session(free_memory=False)
    assert keras.layers.Activation("relu").name == "activation"
    get_architecture("MobileNetV3Small").build((64, 64))
    assert keras.layers.Activation("relu").name == "activation_1"


def test_few_of_many_names_are_listed():
    names = [f"conv{number}" for number in range(400)]
    said = nearest("zzz", names)
    assert said.endswith("conv49 and 350 more.")
    assert nearest("zzz", names[:50]).endswith("conv49.")
