"""What the jobs share: flags, their fields, and progress on the console."""
