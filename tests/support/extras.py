"""Modules of tests that need a package of an extra, which takes seconds to import."""

import importlib.util

import pytest


def needs(*packages: str, extra: str) -> None:
    """Skip the test module that is being collected, unless these packages are installed. Imports none of them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra {extra})", allow_module_level=True)
