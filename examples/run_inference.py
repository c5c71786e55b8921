"""The embedder behind Beam's own RunInference: images in, keyed vectors out, inside any pipeline.

    python examples/run_inference.py MODEL_FOLDER PATTERN

MODEL_FOLDER is where the model is staged, once: on a cluster a bucket, since workers load the model from there.
There is no resume here and nothing is written: for jobs that must survive a crash see embed_images.py.
"""

import sys

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

import imagebeam


def main(folder: str, pattern: str) -> None:
    config = imagebeam.EmbedderConfig("MobileNetV3Small", "random:0", image_size=(96, 96))
    model = imagebeam.stage_model(config, folder)
    options = imagebeam.ImageOptions.from_spec(model.spec)
    with beam.Pipeline("FnApiRunner") as pipeline:
        (
            pipeline
            | fileio.MatchFiles(pattern)
            | fileio.ReadMatches()
            | beam.Map(lambda file: (file.metadata.path, imagebeam.decode_image(file.read(), options).pixels))
            | RunInference(KeyedModelHandler(imagebeam.EmbeddingModelHandler(model)))
            | beam.MapTuple(lambda path, result: f"{path}: {len(result.inference['embedding'])} floats")
            | beam.Map(print)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
