"""What carries the effects of learning rules out."""
