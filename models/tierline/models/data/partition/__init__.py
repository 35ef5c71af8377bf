"""Who gets which training samples. One file per way of dealing them out, see `core.catalog`."""
