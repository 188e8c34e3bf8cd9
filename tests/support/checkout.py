"""Where this checkout lies, and the bundles that it ships."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
MODELS: Final = ROOT / "models" / "headwater_models"
STARTER: Final = MODELS / "starter"
GROCERIES: Final = MODELS / "groceries"
