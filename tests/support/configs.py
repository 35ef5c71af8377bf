"""Configuration files as people write them."""

from __future__ import annotations

AGENT = """schema = 1
[node]
id = "orin-1"
parent = "127.0.0.1:7443"
[[source]]
view = "cam-1"
uri = "folder:./samples"
"""
