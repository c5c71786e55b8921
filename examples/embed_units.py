"""The durable path in a pipeline of your own: shards to parts, and on with what became of each unit.

    python examples/embed_units.py OUTPUT PATTERN...

Run it again and it goes on where it was: units whose parts are in OUTPUT are skipped.
"""

import sys

import apache_beam as beam

import imagebeam


def main(output: str, *patterns: str) -> None:
    config = imagebeam.EmbedderConfig("MobileNetV3Small", "random:0", image_size=(96, 96))
    model = imagebeam.stage_model(config, f"{output}/model")
    with beam.Pipeline("FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Create([patterns])
            | imagebeam.PlanUnits(rows_per_unit=256)
            | imagebeam.EmbedUnits(model, output)
            | beam.Filter(lambda report: hasattr(report, "commit"))  # not the notes on what was left out of the input
            | beam.Map(lambda report: (report.commit.embedded, report.commit.failed, report.skipped))
            | beam.Map(lambda unit: "{} embedded, {} failed, done before: {}".format(*unit))
            | beam.Map(print)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
