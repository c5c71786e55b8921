"""A run as a whole: committing its units, reports, the manifest, the lease, clearing up, verifying."""
