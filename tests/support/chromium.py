"""The Chromium that tests of pages drive: that of the system, or the one that HEADWATER_TEST_CHROMIUM names."""

import os
import shutil
from typing import Final

import pytest

CHROMIUM: Final = os.environ.get("HEADWATER_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium: Final = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt install chromium), or HEADWATER_TEST_CHROMIUM"
)


def arguments() -> list[str]:
    """How it is started: its sandbox refuses to run as root."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []
