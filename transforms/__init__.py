"""The building blocks of the jobs in `pipelines`: readers, image decoding, models and writers."""
