"""The address of the live page: printed as soon as it answers, and opened in a browser where there is a display."""

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Mapping

from headwater.commands.terminal import say


def tell(web: str, *, opens: bool) -> None:
    """Print the address of the page at ``web``, http://host:port; ``opens``: show it in a browser, where there is one."""
    say(f"live page: {web}/")
    if opens and has_display(os.environ, sys.platform) and sys.stderr.isatty():
        show(f"{web}/")


def has_display(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser can show anything: always on macOS, elsewhere where X or Wayland is there, and not over SSH."""
    if environment.get("SSH_CONNECTION"):
        return False
    return platform == "darwin" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def show(address: str, browse: Callable[[str], bool] = webbrowser.open) -> threading.Thread:
    """Open ``address`` in the user's browser. Some wait until it is closed, so this is a thread that nobody waits for."""
    thread = threading.Thread(target=browse, args=(address,), daemon=True, name="browser")
    thread.start()
    return thread
