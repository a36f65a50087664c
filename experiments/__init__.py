"""Experiment binaries, thin over maxpo."""
