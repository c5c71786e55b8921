"""What a run stores: parts, failures, unit reports and the manifest."""
