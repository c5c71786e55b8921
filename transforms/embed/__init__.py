"""Embed work units, and a model handler for Beam's RunInference."""
