"""`imagebeam extract` in a pipeline of your own: python examples/embed_images.py OUTPUT PATTERN..."""

import sys

import apache_beam as beam

import imagebeam

output, *patterns = sys.argv[1:]
with beam.Pipeline("FnApiRunner") as pipeline:
    images = pipeline | beam.Create(patterns)
    done = images | imagebeam.EmbedImages(output, model="MobileNetV3Small", weights="random:0", image_size=(96, 96))
    done | beam.Map(print)
