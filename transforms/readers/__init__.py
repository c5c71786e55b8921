"""Shards and image files to records: one reader for each format, and what they share."""
