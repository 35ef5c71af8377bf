"""The Tuner: which cut, engine, codec and thresholds, from what was measured. Pure functions of frozen values."""
