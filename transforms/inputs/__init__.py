"""Input patterns to shards, work units and records: discovery, planning, and one reader a format."""
