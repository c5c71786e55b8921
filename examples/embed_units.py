"""The durable path in a pipeline of your own: shards to parts, and on with what became of each unit.

    python examples/embed_units.py OUTPUT PATTERN...

Run it again and it goes on where it was: units whose parts are in OUTPUT are skipped.
"""

import sys

import apache_beam as beam

from transforms.core.spec import EmbedderSpec
from transforms.embed.units import EmbedOptions, EmbedUnits
from transforms.images.decode import ImageOptions
from transforms.inputs.plan_units import PlanUnits
from transforms.inputs.types import ReadOptions
from transforms.models.embedder import resolve
from transforms.models.staged import read_staged, stage
from transforms.runs.part_files import PartOptions


def main(output: str, *patterns: str) -> None:
    folder = f"{output}/model"
    spec = EmbedderSpec("MobileNetV3Small", "", image_size=(96, 96))
    source = {"source": "random:0", "file_sha256": None}
    model = read_staged(folder) or stage(resolve(spec, "random:0"), folder, source)
    read = ReadOptions()
    with beam.Pipeline("FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create([patterns])
            | PlanUnits(input_format=None, rows_per_unit=256, read=read)
            | EmbedUnits(model, output, read, EmbedOptions(ImageOptions.from_spec(model.spec)), PartOptions())
            | beam.Map(lambda report: (report.commit.embedded, report.commit.failed, report.skipped))
            | beam.Map(lambda unit: "{} embedded, {} failed, done before: {}".format(*unit))
            | beam.Map(print)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
