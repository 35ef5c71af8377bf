"""Who talks to whom: neighbours and mixing matrices. One file per topology, see `core.catalog`."""
