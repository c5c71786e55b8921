"""What training reads: labelled rows, their split, their vectors or pixels, and batches of them."""
