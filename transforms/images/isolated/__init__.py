"""Decoders in processes of their own, which may crash or be ended."""
