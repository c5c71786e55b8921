"""Default limits on the size of records and images."""

MAX_RECORD_BYTES = 512 << 20
"""A larger record is a failure, and is not read."""

MAX_IMAGE_PIXELS = 100_000_000
"""Width times height; a larger image is a failure, told by its header."""
