"""Rules of peers that learn without a server. One file per rule, see `core.catalog`."""
