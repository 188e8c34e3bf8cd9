"""Where this checkout lies, and the bundle that it ships."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
STARTER: Final = ROOT / "models" / "headwater_models" / "starter"
