"""Seeded damage of every kind of file that a job reads, worked in child processes: `make hostile`."""
