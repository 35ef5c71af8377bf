"""Ways to cut a network across tiers, over a graph of costs. One file each, see `core.catalog`."""
