"""Puts the READMEs, and what they link to, into the wheel: workers and the gateway serve them under `/docs`.

What the build does not have, as in an image that is made from a part of the tree, is left out.
"""

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PagesInWheel(BuildHookInterface):
    """Called by hatchling for each wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files. An editable install reads those of the checkout."""
        if version == "editable":
            return
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("readmes", root / "streams/headwater/docs/readmes.py")
        assert spec is not None
        assert spec.loader is not None
        readmes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(readmes)
        for name, path in readmes.files(lambda name: root / name).items():
            if not name.startswith(readmes.PACKAGES):
                build_data["force_include"][str(path)] = f"{readmes.FOLDER_IN_WHEEL}/{name}"
