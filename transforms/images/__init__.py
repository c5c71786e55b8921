"""Encoded bytes to uint8 RGB pixels: the image policy."""
