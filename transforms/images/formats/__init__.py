"""One decoder for each image format, and what some of them share."""
