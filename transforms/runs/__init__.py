"""Runs: commit units, reports, the manifest, the lease, clean-up, verification."""
