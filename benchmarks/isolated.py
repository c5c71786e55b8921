"""Decoding in processes of their own, which may crash, against decoding in this process, format by format.

    python -m benchmarks.isolated [--rounds 5] [--seconds 1] [--format AVIF ...]

One photograph in two sizes, as each format's usual writers have it, is decoded and resized to 224x224 by one thread a
core, in turn here and in decoder processes. Beside images/s stand milliseconds of a processor for an image, which other
work of the machine does not change. The ratio is of images/s, there over here, the median of the rounds.
"""

from __future__ import annotations

import argparse
import functools
import io
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import pillow_heif
from sklearn.datasets import load_sample_images

from benchmarks.common import publish
from transforms.core.batching import available_cores
from transforms.images.decode import DECODERS, ImageOptions, decode_here, prepare_pillow
from transforms.images.isolated.decoder_pool import thread_time
from transforms.images.isolated.isolated_decoder import Isolated
from transforms.images.sniff import sniff

SIZES = ((500, 375), (4000, 3000))
OPTIONS = ImageOptions(image_size=(224, 224))
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "TIFF, plain": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, JPEG": ("TIFF", {"compression": "jpeg"}),
    "JPEG 2000": ("JPEG2000", {"quality_mode": "dB", "quality_layers": [38]}),
    "AVIF": ("AVIF", {"speed": 9}),
    "HEIF": ("HEIF", {}),
    "WebP": ("WEBP", {"method": 1}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "JPEG": ("JPEG", {"quality": 90}),
    "PNG": ("PNG", {"compress_level": 1}),
}


@dataclass
class Figures:
    """Of one way to decode."""

    images_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def encoded(size: tuple[int, int], names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """(name, file) in each of these formats."""
    photograph = PIL.Image.fromarray(load_sample_images().images[0]).resize(size, PIL.Image.Resampling.BICUBIC)
    for name in names:
        image_format, options = FORMATS[name]
        stream = io.BytesIO()
        photograph.save(stream, image_format, **options)
        yield name, stream.getvalue()


def measure(decode: Callable[[bytes], Any], data: bytes, count: int, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Images/s, and milliseconds of a processor for an image."""

    def one(_: int) -> float:
        before = thread_time() - time.thread_time()
        decode(data)
        return thread_time() - time.thread_time() - before  # of a decoder process

    started, used = time.perf_counter(), _used()
    there = sum(pool.map(one, range(count)))
    return count / (time.perf_counter() - started), 1e3 * (_used() - used + there) / count


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--format", nargs="*", default=list(FORMATS), choices=list(FORMATS), help="one or several")
    parser.add_argument("--seconds", type=float, default=1.0, help="for one measurement, about")
    args = parser.parse_args()
    prepare_pillow()
    pillow_heif.register_heif_opener()
    rows = [("one photograph to 224x224", "images/s here | there | ratio | CPU ms here | there")]
    figures: dict[str, Any] = {}
    with ThreadPoolExecutor(available_cores()) as pool:
        for size in SIZES:
            for name, data in encoded(size, args.format):
                kind = sniff(data)
                assert kind is not None
                chosen = DECODERS[kind].decode
                here = chosen.load() if isinstance(chosen, Isolated) else chosen
                there = chosen if isinstance(chosen, Isolated) else Isolated.of(chosen)
                ways: dict[str, Callable[[bytes], Any]] = {
                    "here": functools.partial(decode_here, here, options=OPTIONS, killable=True),
                    "there": functools.partial(there.decode, kind=kind, options=OPTIONS),
                }
                found = {way: Figures() for way in ways}
                for decode in ways.values():
                    measure(decode, data, 4, pool)  # warms what is imported and started
                count = max(4, round(args.seconds * measure(ways["here"], data, 4, pool)[0]))
                for number in range(args.rounds):
                    for way in sorted(ways, reverse=bool(number % 2)):
                        images_s, cpu_ms = measure(ways[way], data, count, pool)
                        found[way].images_s.append(images_s)
                        found[way].cpu_ms.append(cpu_ms)
                ratio = statistics.median(
                    b / a for a, b in zip(found["here"].images_s, found["there"].images_s, strict=True)
                )
                label = f"{size[0]}x{size[1]} {name}"
                figures[label] = {way: vars(one) for way, one in found.items()} | {"ratio": ratio}
                rates, cpu = (
                    [statistics.median(getattr(one, unit)) for one in found.values()] for unit in ("images_s", "cpu_ms")
                )
                rows.append((label, f"{rates[0]:7.1f} | {rates[1]:7.1f} | {ratio:.2f} | {cpu[0]:6.1f} | {cpu[1]:6.1f}"))
    publish("isolated", figures, rows)


if __name__ == "__main__":
    main()
