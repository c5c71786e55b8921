"""Vectors that need not be computed again: which committed parts may hold them, and the rows found there."""
