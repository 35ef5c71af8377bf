"""Networks to train, each built for an input shape and a number of classes. One file each, see `core.catalog`."""
