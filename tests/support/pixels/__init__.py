"""The matrix of images that `make pixels` decodes: each written by another program, with the pixels that are right."""
