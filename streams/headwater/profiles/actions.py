"""The table of actions as arrays by code, for whole batches, and the three actions that have rules of their own.

The arrays have a place for every code that a user record can hold. A code without a row in the table, from a newer
version, neither steps the encoder nor counts as seen or popular.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from headwater.messages import ACTIONS, MAX_ACTION_CODE

Bools = NDArray[np.bool_]

RETRACT: Final = ACTIONS["retract"].code
FORGET: Final = ACTIONS["forget"].code
IMPRESSION: Final = ACTIONS["impression"].code

CODES: Final = MAX_ACTION_CODE + 1
STEPS: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) moves the user's interests
SEEN: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) counts as seen for `exclude_seen`
POPULARITY: Final[NDArray[np.float64]] = np.zeros(CODES)  # (16,) weight in the decayed counts
HIDES: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) keeps the item out of all answers
UNHIDES: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) lets a hidden item in again
REPELS: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) takes rank from items like it
for _action in ACTIONS.values():
    STEPS[_action.code] = _action.steps_encoder
    SEEN[_action.code] = _action.counts_as_seen
    POPULARITY[_action.code] = _action.popularity
    HIDES[_action.code], UNHIDES[_action.code] = _action.hides, _action.unhides
    REPELS[_action.code] = _action.repels

TAKES_BACK: Final[Bools] = np.zeros(CODES, dtype=np.bool_)  # (16,) changes what is in the log already
TAKES_BACK[[RETRACT, FORGET]] = True
