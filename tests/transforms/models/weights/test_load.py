"""Weights from files: every kind gives the same values, and nothing but weights is taken."""

import json
import pickle
import random
import re
import threading
import zipfile

import h5py
import keras
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from transforms.core.errors import ImagebeamError
from transforms.models.architectures import get_architecture
from transforms.models.config import EmbedderConfig
from transforms.models.embedder import resolve
from transforms.models.weights import load as weights

VGG16 = get_architecture("VGG16")


@pytest.fixture(scope="module")
def model():
    """Plain Keras', built until two are equal: a thread that an earlier test left may draw from `random`, too."""

    def build():
        keras.utils.set_random_seed(3)
        return keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))

    one, other = build(), build()
    while weights.digest(one) != weights.digest(other):
        one, other = other, build()
    return one


def arrays(model):
    """What .npz files hold: "layer/weight" -> values."""
    return {
        f"{layer.name}/{variable.name}": np.asarray(variable) for layer in model.layers for variable in layer.weights
    }


def test_seeded_weights_equal_plain_keras_in_any_thread(model):
    drawing = True

    def draw():
        while drawing:
            random.random()

    thread = threading.Thread(target=draw)
    thread.start()
    before = random.getstate()
    try:
        for _ in range(3):
            found = weights.load_backbone(VGG16, "random:3", (32, 32))
            assert weights.digest(found) == weights.digest(model)
    finally:
        drawing = False
        thread.join()
    assert random.getstate() != before  # it did draw


def test_seeding_keeps_the_callers_random_state():
    random.seed(5)
    expected = random.Random(5).random()
    weights.load_backbone(VGG16, "random:3", (32, 32))
    assert random.random() == expected


def write_keras(model, path):
    model.save_weights(path)


def write_legacy(model, path):
    """As Keras 2 wrote weights, and as keras.applications still publishes them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.15.0"
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                group.create_dataset(name, data=np.asarray(variable))


def write_npz(model, path):
    np.savez(path, **arrays(model))


def write_onnx(model, path):
    """Initializers alone, under the names that tf2onnx gives them."""
    initializers = []
    for name, array in arrays(model).items():
        layer, kind = name.split("/")
        if kind == "kernel":
            array, name = array.transpose(3, 2, 0, 1), f"model/{layer}/Conv2D/ReadVariableOp:0"
        else:
            name = f"model/{layer}/BiasAdd/ReadVariableOp:0"
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    graph = helper.make_graph([], "vgg16", [], [], initializers)
    onnx.save(helper.make_model(graph), path)


WRITERS = {"a.weights.h5": write_keras, "a.h5": write_legacy, "a.npz": write_npz, "a.onnx": write_onnx}


@pytest.mark.parametrize("name", list(WRITERS))
def test_the_same_values_in_any_file_are_the_same_weights(tmp_path, model, name):
    WRITERS[name](model, tmp_path / name)
    embedder = resolve(EmbedderConfig("VGG16", str(tmp_path / name), image_size=(32, 32)))
    assert embedder.spec.weights_sha256 == weights.digest(model)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    maps = model(keras.applications.vgg16.preprocess_input(image.astype("float32")))
    np.testing.assert_allclose(embedder.embed(image)["embedding"], np.mean(maps, axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_another_value_is_another_digest(model):
    before = weights.digest(model)
    bias = model.get_layer("block5_conv3").weights[1]
    old = np.array(bias)
    bias.assign(np.where(np.arange(512) == 100, np.nextafter(old, 1), old))
    assert weights.digest(model) != before
    bias.assign(old)
    assert weights.digest(model) == before


@pytest.mark.parametrize("value", ["model.pb", "weights.pkl", "random", "random:x", "ImageNet", "imagenet21k", ""])
def test_unknown_weights_value_is_refused(value):
    with pytest.raises(ImagebeamError, match=re.escape(f"Received: weights={value!r}")):
        weights.is_file(value)


def full_model(path, *layers):
    small = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    small.save(path)


def with_head_npz(path):
    larger = arrays(keras.applications.VGG19(include_top=False, weights=None, input_shape=(32, 32, 3)))
    head = {"dense/kernel": np.zeros((512, 5), "f4"), "dense/bias": np.zeros(5, "f4")}
    np.savez(path, **larger, **head)  # type: ignore[arg-type]


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def pickled(path):
    np.savez(path, **{"block1_conv1/kernel": np.array([Evil()], dtype=object)})  # type: ignore[arg-type]


def wrong_shape(path):
    shapes = {name: array[..., :-1] if "block3_conv2/kernel" in name else array for name, array in good().items()}
    np.savez(path, **shapes)


def missing(path):
    some = good()
    del some["block4_conv1/bias"]
    np.savez(path, **some)


def good():
    return arrays(keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3)))


def of_vgg19(writer):
    def write(path):
        writer(keras.applications.VGG19(include_top=False, weights=None, input_shape=(32, 32, 3)), path)

    return write


def cut(path):
    np.savez(path, a=np.zeros(10000))
    path.write_bytes(path.read_bytes()[:-5000])


def broken_member(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("block1_conv1/kernel.npy", b"\x93NUMPY and then nothing")


def of_other_layout(keras_3):
    """The first convolution of a VGG16 half as wide."""

    def write(path):
        narrow = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(32, 3, name="block1_conv1")])
        if keras_3:
            write_keras(narrow, path.with_name("x.weights.h5"))
            path.with_name("x.weights.h5").rename(path)
        else:
            write_legacy(narrow, path)

    return write


def theano(path):
    write_legacy(keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3)), path)
    with h5py.File(path, "a") as file:
        file.attrs["backend"] = b"theano"


def linked(link):
    def write(path):
        with h5py.File(path, "w") as file:
            file.create_group("layers/conv2d/vars")
            file["layers/conv2d/vars/0"] = link

    return write


def stored_elsewhere(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def inflating(path):
    """256 MB of zeros under the name of a weight, in 256 KB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("block1_conv1/kernel.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2**26,)})
        for _ in range(8):
            member.write(bytes(2**25))


def long_header(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("block1_conv1/kernel.npy", b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + bytes(2**27))


def outside_data(path):
    tensor = numpy_helper.from_array(np.zeros(64, np.float32), "model/block1_conv1/BiasAdd/ReadVariableOp:0")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString())


def torch_file(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil()))


def keras_archive(layer):
    def write(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": [layer]}}))
            file.writestr("model.weights.h5", b"")

    return write


def bomb_archive(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", bytes(2**26))


def junk(path):
    path.write_bytes(b"this is no file of weights" * 50)


def empty(path):
    path.write_bytes(b"")


def bare_pickle(path):
    path.write_bytes(pickle.dumps(Evil()))


def misplaced(path):
    """An archive whose members would lie before its beginning."""
    np.savez(path, x=np.zeros(3))
    data = bytearray(path.read_bytes())
    field = slice(len(data) - 6, len(data) - 2)
    data[field] = (int.from_bytes(data[field], "little") + 1_000).to_bytes(4, "little")
    path.write_bytes(data)


def named_in_bytes(path):
    tensor = numpy_helper.from_array(np.zeros(64, np.float32), "block1_conv1/name")
    data = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    path.write_bytes(data.replace(b"block1_conv1/name", b"block1_conv1/\xff\xfe\xff\xfe"))


REFUSED = {
    "an archive that leads before its beginning": ("a.npz", misplaced, "damaged"),
    "ONNX names that are not text": ("a.onnx", named_in_bytes, "not text"),
    "a whole model of another kind": ("a.h5", full_model, r"block1_conv1/kernel has shape \(4, 2\)"),
    "a whole model with a Lambda layer": ("a.h5", lambda path: full_model(path, keras.layers.Lambda(abs)), "Lambda"),
    "the index of sharded weights": ("a.weights.json", lambda path: path.write_text('{"weight_map": {}}'), "index"),
    "a larger network with a head": ("a.npz", with_head_npz, "the model has no 'block3_conv4/bias'"),
    "an HDF5 file of something else": ("a.h5", lambda path: h5py.File(path, "w").close(), "names no layers"),
    "weights of VGG19, legacy": ("a.h5", of_vgg19(write_legacy), "do not fit vgg16"),
    "weights of VGG19, Keras 3": ("a.weights.h5", of_vgg19(write_keras), "do not fit vgg16"),
    "a whole model under the name of weights": ("a.weights.h5", None, "do not fit vgg16"),
    "a pickled array": ("a.npz", pickled, "pickled"),
    "a pickle": ("a.npz", bare_pickle, "pickled"),
    "an array of another shape": ("a.npz", wrong_shape, r"block3_conv2/kernel has shape \(3, 3, 256, 255\)"),
    "a missing array": ("a.npz", missing, r"1 of 26 arrays are missing, the first is 'block4_conv1/bias'"),
    "an ONNX graph of VGG19": (
        "a.onnx",
        of_vgg19(write_onnx),
        "do not fit vgg16: the model has no 'block3_conv4/bias'",
    ),
    "other shapes, Keras 3": ("a.h5", of_other_layout(True), r"block1_conv1/kernel has shape \(3, 3, 3, 32\)"),
    "other shapes, legacy": ("a.weights.h5", of_other_layout(False), r"\(3, 3, 3, 32\) in the file, not .*64\)"),
    "Theano's kernels": ("a.h5", theano, "Theano"),
    "a link to another file": ("a.h5", linked(h5py.ExternalLink("/etc/passwd", "/x")), "is a link"),
    "a link within the file": ("a.h5", linked(h5py.SoftLink("/x")), "is a link"),
    "data in another file": ("a.h5", stored_elsewhere, "lies in another file"),
    "an array that inflates": ("a.npz", inflating, r"block1_conv1/kernel has shape \(67108864,\)"),
    "a header that inflates": ("a.npz", long_header, "not an array of NumPy"),
    "ONNX data in another file": ("a.onnx", outside_data, "lie in another file"),
    "a PyTorch file": ("a.bin", torch_file, "PyTorch"),
    "a pickle without a known name": ("weights.bin", bare_pickle, "pickled"),
    "a Lambda layer": ("a.keras", keras_archive({"class_name": "Lambda", "module": "keras.layers"}), "Lambda"),
    "a function of the system": ("a.keras", keras_archive({"class_name": "system", "module": "os"}), "os.system"),
    "a Keras archive that inflates": ("a.keras", bomb_archive, "inflates from"),
    "a Git LFS pointer": ("a.h5", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "LFS"),
    "an archive cut short": ("a.npz", cut, "a.npz"),
    "an archive of damaged arrays": ("a.npz", broken_member, "a.npz"),
    **{
        f"{what} as {name}": (name, maker, name)
        for what, maker in {"junk": junk, "an empty file": empty}.items()
        for name in WRITERS
    },
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_other_weights_files_are_refused_in_one_line(tmp_path, what):
    name, write, message = REFUSED[what]
    path = tmp_path / name
    if write is None:
        full_model(tmp_path / "whole.h5")
        (tmp_path / "whole.h5").rename(path)
    else:
        write(path)
    with pytest.raises(ImagebeamError, match=message) as caught:
        weights.load_backbone(VGG16, str(path), (32, 32))
    assert f"Received: weights={str(path)!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ImagebeamError, match=f"cannot be read: .*{name}"):
        weights.load_backbone(VGG16, str(tmp_path / name), (32, 32))


@pytest.fixture(scope="module")
def small():
    """A network whose classifier has 7 classes, with every kind of layer that keeps its state apart."""
    architecture = get_architecture("MobileNetV3Small")
    return architecture.build((224, 224), include_top=True, classes=7)


def write_safetensors(model, path):
    header, data = {}, b""
    for name, array in arrays_by_path(model).items():
        values = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": {"float32": "F32", "int32": "I32"}[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps({"__metadata__": {}, **header}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def arrays_by_path(model):
    return {variable.path.removeprefix(f"{model.name}/"): np.asarray(variable) for variable in model.weights}


def write_renamed_npz(model, path):
    with path.open("wb") as file:
        np.savez(file, **arrays_by_path(model))


ANY_NAME = {
    "new.h5": write_keras,
    "old.weights.h5": write_legacy,
    "a.HDF5": write_keras,
    "b.H5": write_legacy,
    "whole.keras": lambda model, path: model.save(path),
    "renamed.bin": write_renamed_npz,
    "a.safetensors": write_safetensors,
}


@pytest.mark.parametrize("name", list(ANY_NAME))
def test_content_decides_the_file_type_and_number_of_classes(tmp_path, small, name):
    path = tmp_path / name
    if name in ("new.h5", "a.HDF5"):  # Keras writes its layout under this ending only
        ANY_NAME[name](small, tmp_path / "x.weights.h5")
        (tmp_path / "x.weights.h5").rename(path)
    else:
        ANY_NAME[name](small, path)
    architecture = get_architecture("MobileNetV3Small")
    with_top = weights.load_backbone(architecture, str(path), (224, 224), include_top=True)
    assert with_top.output.shape == (None, 7)
    assert weights.digest(with_top) == weights.digest(small)
    below = weights.load_backbone(architecture, str(path), (64, 64))
    for found, right in zip(below.get_weights(), small.get_weights(), strict=False):
        np.testing.assert_array_equal(found, right)


def with_head(backbone, *, nested, freeze=0):
    """A classifier as users make it: on the backbone as one layer, or on its output."""
    head = [keras.layers.BatchNormalization(), keras.layers.Dense(4), keras.layers.Dense(3)]
    pooled = keras.layers.GlobalAveragePooling2D()
    for number, layer in enumerate(backbone.layers):
        layer.trainable = number >= freeze
    if nested:
        return keras.Sequential([backbone, pooled, *head])
    outputs = pooled(backbone.output)
    for layer in head:
        outputs = layer(outputs)
    return keras.Model(backbone.input, outputs)


def write_nested_legacy(model, path):
    """As Keras 2's save_weights: what is frozen comes last."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            group.attrs["weight_names"] = [f"{variable.path}:0".encode() for variable in weights]
            for variable in weights:
                group.create_dataset(f"{variable.path}:0", data=np.asarray(variable))


def write_tensorflow_npz(model, path):
    values = {f"{variable.path}:0": np.asarray(variable) for variable in model.weights}
    np.savez(path, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("nested", "freeze"), [(True, 100), (False, 0)])
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.h5", write_nested_legacy),
        ("whole.h5", lambda model, path: model.save(path)),
        ("a.keras", lambda model, path: model.save(path)),
        ("a.weights.h5", write_keras),
        ("a.npz", write_tensorflow_npz),
    ],
)
def test_weights_below_a_users_own_head_are_the_backbones(tmp_path, name, write, nested, freeze):
    architecture = get_architecture("MobileNetV3Small")
    backbone = architecture.build((32, 32))
    write(with_head(backbone, nested=nested, freeze=freeze), tmp_path / name)
    found = weights.load_backbone(architecture, str(tmp_path / name), (32, 32))
    assert weights.digest(found) == weights.digest(backbone)


def test_weights_in_a_list_are_taken_in_the_models_order(tmp_path, model):
    np.savez(tmp_path / "a.npz", *model.get_weights())
    found = weights.load_backbone(VGG16, str(tmp_path / "a.npz"), (32, 32))
    assert weights.digest(found) == weights.digest(model)


def test_what_a_head_leaves_over_is_no_reason_to_take_part_of_a_layer(tmp_path, model):
    """An int8 layer keeps the scale of its kernel beside it."""
    scale = {"block1_conv1/kernel_scale": np.zeros((1, 64), "f4")}
    np.savez(tmp_path / "a.npz", **arrays(model), **scale)  # type: ignore[arg-type]
    with pytest.raises(ImagebeamError, match="block1_conv1/kernel_scale"):
        weights.load_backbone(VGG16, str(tmp_path / "a.npz"), (32, 32))


@pytest.mark.slow
def test_efficientnet_has_one_graph_for_one_fingerprint(tmp_path, monkeypatch):
    """Keras adds a layer for `imagenet`; a file that lists it, and the published file itself, are built with it."""
    efficientnet = pytest.importorskip("keras.src.applications.efficientnet")
    architecture = get_architecture("EfficientNetB0")
    published, listing = tmp_path / "notop.h5", tmp_path / "tuned.weights.h5"
    write_legacy(architecture.build(None), published)
    architecture.build(None, rescaled=True).save_weights(listing)
    monkeypatch.setattr(efficientnet.file_utils, "get_file", lambda *_, **__: str(published))

    def spec(source):
        return resolve(EmbedderConfig("EfficientNetB0", str(source), image_size=(32, 32))).spec

    imagenet = spec("imagenet")
    assert spec(published).graph_sha256 != imagenet.graph_sha256  # not known as the published one
    assert spec(listing).graph_sha256 == imagenet.graph_sha256
    whole = tmp_path / "whole.h5"
    keras.Sequential([architecture.build(None, rescaled=True), keras.layers.Flatten()]).save(whole)
    assert spec(whole).graph_sha256 == imagenet.graph_sha256
    monkeypatch.setattr(weights, "_is_published", lambda *_: True)
    assert spec(published) == imagenet


def test_same_seed_gives_same_weights_and_none_does_not():
    def digest(value):
        return weights.digest(weights.load_backbone(get_architecture("MobileNetV3Small"), value, (32, 32)))

    assert digest("random:1") == digest("random:1") != digest("random:2")
    assert digest("none") != digest("none")


def test_unreachable_imagenet_weights_say_what_to_do(monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on https://example.org: no route to host")

    monkeypatch.setattr(keras.utils, "get_file", unreachable)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    with pytest.raises(ImagebeamError, match=r"no route to host.*--weights FILE"):
        weights.load_backbone(VGG16, "imagenet", (32, 32))
