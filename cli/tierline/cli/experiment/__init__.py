"""Experiment files: what to compare, run, and judged."""
