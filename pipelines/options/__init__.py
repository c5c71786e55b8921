"""The jobs' options, parsed and checked."""
