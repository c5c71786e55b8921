"""Reuse vectors from committed parts."""
