"""Read records from shards and image files: one reader per format."""
