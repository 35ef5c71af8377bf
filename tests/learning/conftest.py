"""A PostgreSQL database where one can be had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import throwaway_postgres as throwaway


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """Its URL."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'tierline[postgres]'")
    if throwaway.why_not():
        pytest.skip(throwaway.why_not())
    with throwaway.cluster() as url:
        yield url
