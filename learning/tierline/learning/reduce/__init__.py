"""Ways to average a value over all nodes. One file per Reducer, see `core.catalog`."""
