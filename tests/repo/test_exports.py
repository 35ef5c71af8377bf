"""Names that users import: to rename one breaks their programs. Say so in the changelog, then change it here."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import pytest

PUBLIC = {"tierline.core.client": {"Client"}}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_frozen(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} does not exist yet")
    module = importlib.import_module(name)
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }
    assert defined == PUBLIC[name]
