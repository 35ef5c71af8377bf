"""Learning rules as pure generators of effects, and the drivers that carry the effects out. No I/O, no framework."""
