"""Paired measurements: each prints a table and writes its figures as JSON into benchmarks/results/."""
