"""Federated rules: each file holds a Server and a Worker. One file per strategy, see `core.catalog`."""
