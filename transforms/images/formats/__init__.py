"""One decoder per image format."""
