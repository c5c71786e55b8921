"""A column of images becomes a column of vectors, in Beam's MLTransform.

python examples/ml_transform.py ARTIFACT_FOLDER PATTERN
"""

import sys

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.ml.transforms.base import MLTransform

import imagebeam


def main(artifacts: str, pattern: str) -> None:
    embeddings = imagebeam.KerasImageEmbeddings(
        columns=["image"], model="MobileNetV3Small", weights="random:0", image_size=(96, 96)
    )
    with beam.Pipeline("FnApiRunner") as pipeline:
        (
            pipeline
            | fileio.MatchFiles(pattern)
            | fileio.ReadMatches()
            | beam.Map(lambda file: {"path": file.metadata.path, "image": file.read()})
            | MLTransform(write_artifact_location=artifacts).with_transform(embeddings)
            | beam.Map(lambda row: f"{row['path']}: {len(row['image'])} floats")
            | beam.Map(print)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
