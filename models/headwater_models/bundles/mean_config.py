"""How the training-free user encoder decays: shared by its graphs and by the baseline over any tower."""

from dataclasses import dataclass

from headwater.encoder.features import ACTION_CODES
from headwater.messages import SESSION_ACTIONS


@dataclass(frozen=True)
class MeanConfig:
    """How the mean decays, and what each action weighs."""

    # A click keeps 0.85 of the state. After 50 clicks 0.0003 is left, which no answer shows, so stepping past evicted
    # events equals the fold over the newest 50 (`forgets`).
    keep: float = 0.85
    half_life_s: float = 14 * 86_400.0
    click: float = 1.0
    view: float = 0.5
    like: float = 1.5
    add_to_cart: float = 2.0
    purchase: float = 3.0

    def weights(self) -> list[float]:
        """Weight by action code.

        Actions that do not step an encoder weigh nothing; those not named here weigh as a click.
        """
        weights = [0.0] * (max(ACTION_CODES.values()) + 1)
        for name in SESSION_ACTIONS:
            weights[ACTION_CODES[name]] = float(getattr(self, name, self.click))
        return weights
