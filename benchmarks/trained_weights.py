"""Trained weights of MobileNetV2 and InceptionV3 from the npm registry, for `benchmarks.engines` and `imagebeam`.

    npm pack nsfwjs@4.2.1
    python -m benchmarks.trained_weights nsfwjs-4.2.1.tgz weights      # needs node

The package (MIT) has classifiers of photographs and drawings in TensorFlow.js' format, whose convolution bases are
Keras' own, trained on ImageNet and partly on those images. Every tensor was rounded to 256 values for the package, so
this is not `--weights imagenet`; but the values are those of a trained network, as random ones are not.
"""

from __future__ import annotations

import argparse
import base64
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

FOLDERS = {"MobileNetV2": "mobilenet_v2", "InceptionV3": "inception_v3"}

_AS_JSON = """
const load = path => { const found = require(path); return found.default || found; };
const folder = process.argv[1], [group] = load(folder + '/model.min.js').weightsManifest;
const shards = group.paths.map(name => load(`${folder}/${name}.min.js`));
console.log(JSON.stringify({weights: group.weights, shards}));
"""


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Tensor name -> float32, of a model in TensorFlow.js' format with its shards as scripts.

    A value is `min + scale * byte`, as TensorFlow.js' converter writes it.
    """
    node = subprocess.run(["node", "-e", _AS_JSON, folder], check=True, capture_output=True)
    found = json.loads(node.stdout)
    data, tensors = b"".join(base64.b64decode(shard) for shard in found["shards"]), {}
    for one in found["weights"]:
        size = int(np.prod(one["shape"]))
        stored, data = np.frombuffer(data[:size], np.uint8).reshape(one["shape"]), data[size:]
        rounding = one["quantization"]
        tensors[one["name"]] = (rounding["min"] + rounding["scale"] * stored).astype(np.float32)
    if data:
        raise SystemExit(f"{folder}: {len(data):,} bytes belong to no tensor")
    return tensors


def fill(model: keras.Model, tensors: dict[str, np.ndarray]) -> int:
    """Set the weights of `model`; how many tensors.

    Layers that Keras numbered are told by their order: the numbers begin at 1 in the package, anywhere here.
    """
    with_weights = [layer for layer in model.layers if layer.weights]
    names = {layer.name: layer.name for layer in with_weights}
    for kind in ("conv2d", "batch_normalization"):
        numbered = [name for name in names if name.rstrip("_0123456789") == kind]
        numbered.sort(key=lambda name: int(name.removeprefix(kind).lstrip("_") or 0))
        names |= {name: f"{kind}_{number}" for number, name in enumerate(numbered, 1)}
    taken: set[str] = set()
    for layer in with_weights:
        kernel = "depthwise_kernel" if type(layer).__name__ == "DepthwiseConv2D" else "kernel"
        kinds = [kernel if weight.name == "kernel" else weight.name for weight in layer.weights]
        wanted = [f"{names[layer.name]}/{kind}" for kind in kinds]
        layer.set_weights([tensors[name] for name in wanted])
        taken |= set(wanted)
    left = sorted(name for name in set(tensors) - taken if not name.startswith("dense_"))
    if left:
        raise SystemExit(f"tensors that the model does not have: {', '.join(left)}")
    return len(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="nsfwjs-4.2.1.tgz")
    parser.add_argument("folder", type=Path, help="to write MODEL.weights.h5 into")
    args = parser.parse_args()
    import keras

    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked, tarfile.open(args.package) as archive:
        archive.extractall(unpacked, filter="data")
        for name, folder in FOLDERS.items():
            build: Any = getattr(keras.applications, name)
            model = build(weights=None, include_top=False)
            count = fill(model, read_tensors(Path(unpacked, "package/dist/models", folder)))
            model.save_weights(args.folder / f"{name}.weights.h5")
            print(f"{count} tensors in {args.folder / name}.weights.h5")


if __name__ == "__main__":
    main()
