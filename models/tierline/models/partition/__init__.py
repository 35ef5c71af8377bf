"""Ways to cut a network across tiers, over a graph of measured or estimated costs. One file each, see `core.catalog`."""
