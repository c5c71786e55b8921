"""Input patterns to shards and work units: listing, inspection and planning."""
