"""Preparing, running and finishing a job."""
