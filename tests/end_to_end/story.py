"""Clicks of many users as life has them, and the oracle: what each user's log must be after them."""

import random
import uuid
from collections.abc import Iterable
from typing import Any

from tests.end_to_end import shop

LOG_LENGTH = 50


class Story:
    """Told in parts by `tell`. One click in twenty is late; a share of them, `repeated`, was sent before.

    One in forty hides its item. It is not late: what is then older than a full log knows of no like that has left it.
    """

    def __init__(self, users: list[str], now_ms: int, *, repeated: float = 0.05) -> None:
        self.users = users
        self._random, self._repeated = random.Random(1), repeated
        self._items = [item["item_id"] for item in shop.items()]
        self._now_ms = now_ms - 1_000_000
        self._told: dict[str, dict[str, dict[str, Any]]] = {user: {} for user in users}
        self._times: set[int] = set()

    def tell(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """The next clicks, with their keys."""
        told = []
        for _ in range(count):
            user = self._random.choice(self.users)
            before = self._told[user]
            if before and self._random.random() < self._repeated:
                told.append((user, self._random.choice(list(before.values()))))
                continue
            hides = self._random.random() < 0.025
            action = "hide" if hides else self._random.choice(["click", "view", "purchase", "like"])
            message = {
                "event_id": str(uuid.UUID(int=self._random.getrandbits(128))),
                "user_id": user,
                "item_id": self._random.choice(self._items),
                "action": action,
                "at_ms": self._next_ms(most_late_ms=0 if hides else 10_000),
            }
            before[message["event_id"]] = message
            told.append((user, message))
        return told

    def _next_ms(self, most_late_ms: int) -> int:
        self._now_ms += 2
        late_ms = (
            self._random.randrange(1, most_late_ms + 1, 2)
            if self._random.random() < 0.05 and most_late_ms
            else 0
        )
        at_ms = self._now_ms - late_ms
        while at_ms in self._times:  # equal times would leave the order to the hash of the event id
            at_ms -= 2
        self._times.add(at_ms)
        return at_ms

    def events(self, user: str) -> list[dict[str, Any]]:
        """The user's newest events, oldest first."""
        return newest_events(self._told[user].values())

    def hides(self, user: str) -> dict[str, dict[str, Any]]:
        """The items that no answer to the user may hold, each with the event that hides it, whatever came after that."""
        hidden: dict[str, dict[str, Any]] = {}
        for message in sorted(self._told[user].values(), key=lambda message: int(message["at_ms"])):
            if message["action"] == "hide":
                hidden[message["item_id"]] = message
            elif message["action"] in ("purchase", "like"):
                hidden.pop(message["item_id"], None)
        return hidden


def newest_events(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a log holds after these messages of one user, oldest first; their times differ."""
    told = {message["event_id"]: message for message in messages}
    return sorted(told.values(), key=lambda message: int(message["at_ms"]))[-LOG_LENGTH:]
