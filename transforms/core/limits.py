"""The largest record and the largest image that are taken, unless a flag says otherwise."""

MAX_RECORD_BYTES = 512 << 20
"""A larger record is a failure, and is not read."""

MAX_IMAGE_PIXELS = 100_000_000
"""Width times height; a larger image is a failure, told by its header."""
