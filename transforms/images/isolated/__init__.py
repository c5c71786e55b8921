"""Decoders in separate processes, which may crash or be killed."""
