"""`headwater dlq list`, `show`, `redrive` and `purge`: inspect dead letters, publish them again, remove them."""

import base64
import os
import re
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from cyclopts import Parameter

from headwater.commands.terminal import (
    FLAG,
    MANY,
    CommandError,
    UsageError,
    moment_ms,
    print_indented,
    run_async,
    running_settings,
    say,
    stdout,
    within_timeout,
)
from headwater.kafka.letter_text import decoded, hex_lines, indented

if TYPE_CHECKING:
    from aiokafka import ConsumerRecord

    from headwater.kafka.letters import Group, Letter, Letters, Place, Wanted
    from headwater.kafka.redrive import Outcome
    from headwater.settings import Settings

Result = TypeVar("Result")

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGE: Final = re.compile(r"([0-9]{1,6})([smhd])")
_SHOWN_BYTES: Final = 256
_SHOWN_CHARS: Final = 4_000
_EXAMPLE_CHARS: Final = 100
_TOLD_EVERY_S: Final = 2.0
_SKIPPED: Final[Mapping[str, str]] = {
    "cut": "were too large to be kept whole: publish the originals again",
    "unreadable": "are of records that nobody could read: publish the originals again",
    "no_use": "are of neither clicks nor catalog: who asked has long given up",
    "failed_again": "failed again when they were redriven: fix the cause, then raise --max-tries",
    "purged": "were purged, or erased with their user, while this ran",
    "superseded": "are of items that got a later change: they would undo it",
}


@Parameter(name="*")
@dataclass(frozen=True)
class LetterFilter:
    """Which letters a command means.

    Parameters
    ----------
    reason
        Only dead letters with this reason; repeatable.
    topic
        Only dead letters from this topic, such as clicks or headwater.clicks.v1; repeatable.
    since
        Only dead letters of the last 30m, 12h or 2d, or since a date and time (without a zone: UTC).
    key
        Only dead letters with this key: the id of a user or an item.
    """

    reason: Annotated[list[str], MANY] = field(default_factory=list)
    topic: Annotated[list[str], MANY] = field(default_factory=list)
    since: str | None = None
    key: str | None = None

    def wanted(self, settings: "Settings") -> "Wanted":
        """The filter in the names of this system. Raises UsageError."""
        from headwater.kafka.letters import Wanted

        names = _topic_names(settings)
        for topic in self.topic:
            if topic not in names and topic not in names.values():
                raise UsageError(
                    f"--topic is {topic}: expected one of {', '.join(sorted(names))}, or its full name"
                )
        return Wanted(
            reasons=tuple(self.reason),
            topics=tuple(names.get(topic, topic) for topic in self.topic),
            since_ms=None if self.since is None else _since_ms(self.since, int(time.time() * 1000)),
            key=None if self.key is None else os.fsencode(self.key),
        )


@Parameter(name="*")
@dataclass(frozen=True)
class ChangeFilter(LetterFilter):
    """Which letters a command changes: nobody means all of them by leaving the filter out.

    Parameters
    ----------
    all_
        All dead letters, instead of a filter.
    """

    all_: Annotated[bool, Parameter(name="--all"), FLAG] = False

    def wanted(self, settings: "Settings") -> "Wanted":
        """The filter in the names of this system. Raises UsageError."""
        is_filtered = bool(self.reason or self.topic or self.since is not None or self.key is not None)
        if is_filtered == self.all_:
            raise UsageError(
                "expected a filter (--reason, --topic, --since or --key), or --all for every letter, and not both"
            )
        return super().wanted(settings)


_ANY: Final = LetterFilter()
_NONE: Final = ChangeFilter()


def show_all(
    *,
    which: LetterFilter = _ANY,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Count the open dead letters by reason and topic, with the remedy of each reason.

    Example: headwater dlq list --topic clicks --since 2d

    Parameters
    ----------
    json
        Print a JSON object.
    """
    from headwater.kafka import letters as found

    settings = running_settings()
    wanted = which.wanted(settings)
    letters = _reached(settings, found.read(settings))
    _check_reasons(wanted, letters)
    waiting = found.groups(filter(wanted.takes, letters.open()))
    # A mark has no key: it keeps nothing of a user.
    redriven = sum(map(wanted.takes, letters.redriven()))
    if json:
        print_indented(
            {
                "letters": sum(group.letters for group in waiting),
                "redriven": redriven,
                "groups": [found.group_fields(group) for group in waiting],
            }
        )
        return 0
    if waiting:
        _print_groups(waiting)
    count = sum(group.letters for group in waiting)
    stdout().print(f"{_letters(count)} to be looked at, {redriven:,} redriven")
    if waiting:
        say(f"`headwater dlq show {waiting[0].newest.place}` shows one of them")
    return 0


def _print_groups(waiting: "Sequence[Group]") -> None:
    """A paragraph for each group: a table of all this is too wide for a terminal."""
    from headwater.kafka.letters import group_fields

    for group in waiting:
        again = f", {group.failed_again:,} of them failed again" if group.failed_again else ""
        lines = (
            f"{group.reason}: {_letters(group.letters)} of {group.topic}{again}, {_when(group.oldest_ms)} to "
            f"{_when(group.newest_ms)}",
            f"    newest: {group.newest.message[:_EXAMPLE_CHARS]}",
            f"    remedy: {group_fields(group)['remedy'] or 'see the message'}",
        )
        for line in lines:
            stdout().print(line)


def show(place: str, *, json: Annotated[bool, FLAG] = False) -> int:
    """Show one dead letter: why it is there, where it comes from, its key, headers, text and bytes.

    Example: headwater dlq show clicks/2/1041

    Parameters
    ----------
    place
        TOPIC/PARTITION/OFFSET of the original, or of the letter itself (dead-letters/0/17).
    json
        Print a JSON object, in which bytes are in base64.
    """
    from headwater.kafka import letters as found

    settings = running_settings()
    names = _topic_names(settings)
    wanted = _place(place, names)

    async def looking() -> "tuple[Letter, ConsumerRecord] | None":
        letter = (await found.read(settings)).at(wanted, names["dead-letters"])
        record = None if letter is None else await found.record_of(settings, letter)
        return None if letter is None or record is None else (letter, record)

    seen = _there(_reached(settings, looking()), wanted)
    fields = _described(settings, *seen)
    if json:
        print_indented(fields)
        return 0
    _print_letter(fields, seen[1].value)
    return 0


def _place(text: str, names: Mapping[str, str]) -> "Place":
    from headwater.kafka.letters import Place

    try:
        place = Place.parse(text)
    except ValueError:
        raise UsageError(
            f"{text} is no place: expected TOPIC/PARTITION/OFFSET, such as clicks/2/1041"
        ) from None
    return place._replace(topic=names.get(place.topic, place.topic))


def _there(seen: "tuple[Letter, ConsumerRecord] | None", place: "Place") -> "tuple[Letter, ConsumerRecord]":
    if seen is None:
        raise CommandError(
            f"there is no dead letter {place}: expected the place of an original, as `headwater dlq list --json` has it; "
            "it may have been purged, erased with its user, or deleted with age"
        )
    return seen


def _described(settings: "Settings", letter: "Letter", record: "ConsumerRecord") -> dict[str, Any]:
    from headwater.kafka.letters import letter_fields, original_headers

    value = record.value
    return {
        **letter_fields(letter),
        "letter": f"{record.topic}/{record.partition}/{record.offset}",
        "put": _when(letter.put_ms),
        "redriven_to": None
        if (to := letter.redriven_to) is None
        else f"{letter.place.topic}/{to.partition}/{to.offset}",
        "redriven_ms": None if to is None else to.redriven_ms,
        "key_base64": _base64(letter.key),
        "headers": [[name, decoded(held), _base64(held)] for name, held in original_headers(record.headers)],
        "letter_headers": [[name, decoded(held)] for name, held in record.headers],
        "text": decoded(value),
        "value_base64": _base64(value),
        "now": "" if to is not None else _complaint(settings, letter, value),
    }


def _complaint(settings: "Settings", letter: "Letter", value: bytes | None) -> str:
    """What this version finds wrong with the message itself, empty where nothing is."""
    from headwater.kafka.topics import Topics
    from headwater.messages import BadMessage, decode_click, decode_item, decode_offer

    names = Topics.named(settings.topic_prefix)
    try:
        if letter.place.topic == names.clicks:
            decode_click(letter.key, value, int(time.time() * 1000))
        elif letter.place.topic == names.catalog and value is not None:
            decode_item(letter.key, value)
        elif letter.place.topic == names.offers and value is not None:
            decode_offer(letter.key, value, int(time.time() * 1000))
    except BadMessage as error:
        return f"{error.reason}: {error}"
    return ""


def _print_letter(fields: Mapping[str, Any], value: bytes | None) -> None:
    console = stdout()

    def line(name: str, said: object) -> None:
        console.print(f"{name:<12}{said}")

    line("original", fields["place"])
    line("letter", f"{fields['letter']}, put {fields['put']}")
    line("reason", f"{fields['reason']}: {fields['message']}")
    if fields["redriven_to"]:
        line("redriven", f"to {fields['redriven_to']}; its content went there")
        return
    if fields["tries"]:
        line("tries", f"redriven {fields['tries']} times before, and failed again")
    line("today", fields["now"] or "this version finds nothing wrong with the message itself")
    line("redrive", _SKIPPED[fields["lacks"]] if fields["lacks"] else "possible")
    line("key", "null" if fields["key_base64"] is None else fields["key"])
    for name, text, _ in fields["headers"]:
        line("header", f"{name}: {'null' if text is None else text}")
    if value is None:
        line("value", "null")
        return
    line("value", f"{len(value):,} bytes")
    for text in _pretty(value)[:_SHOWN_CHARS].splitlines():
        console.print(text)
    for text in hex_lines(value[:_SHOWN_BYTES]):
        console.print(text)
    if len(value) > _SHOWN_BYTES:
        say(f"the first {_SHOWN_BYTES} of {len(value):,} bytes; --json has all")


def redrive(
    *,
    which: ChangeFilter = _NONE,
    rate: float = 100.0,
    max_tries: int = 1,
    dry_run: Annotated[bool, FLAG] = False,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Publish dead letters again, each exactly once, after their cause is fixed.

    The record goes to the topic it came from, as a new one, and its letter is marked in the same transaction. So a second
    run, or one after a crash, leaves it out. A letter that fails again comes back with its number of tries.

    Example: headwater dlq redrive --reason misrouted --rate 100 --dry-run

    Parameters
    ----------
    rate
        Dead letters a second, at most.
    max_tries
        Leave out dead letters that failed again after this many redrives.
    dry_run
        Print what would be done, and do nothing.
    json
        Print a JSON object.
    """
    _check_bounds(rate, max_tries)
    settings = running_settings()
    wanted = which.wanted(settings)
    from headwater.kafka import letters as found
    from headwater.kafka import redrive as redriving
    from headwater.worker.logging_setup import configure_logging

    configure_logging(settings.model_copy(update={"log_level": "warning"}))

    async def running() -> "Outcome":
        _check_reasons(wanted, await found.read(settings))
        return await redriving.run(settings, wanted, rate, max_tries, _progress(), dry_run=dry_run)

    outcome = _reached(settings, running())
    if json:
        print_indented({**outcome.fields(), "dry_run": dry_run})
    else:
        done = "would be redriven" if dry_run else "redriven"
        print(f"{_letters(outcome.redriven)} {done}")
    for code, count in sorted(outcome.skipped.items()):
        say(f"{_letters(count)} left out: they {_SKIPPED[code]}")
    for place, reason in outcome.refused:
        say(f"{place} left as it was: its topic does not take the record ({reason})")
    return 1 if outcome.refused else 0


def _check_bounds(rate: float, max_tries: int) -> None:
    from headwater.kafka.letters import MAX_RATE, MIN_RATE

    if not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(f"--rate is {rate:g}: expected letters a second, from {MIN_RATE:g} to {MAX_RATE:g}")
    if max_tries < 1:
        raise UsageError(f"--max-tries is {max_tries}: expected 1 or more")


def purge(
    *,
    which: ChangeFilter = _NONE,
    dry_run: Annotated[bool, FLAG] = False,
    json: Annotated[bool, FLAG] = False,
) -> int:
    """Take dead letters out for good. Those that were redriven have no content any more, and keep their marks.

    Example: headwater dlq purge --reason bad_json --since 12h

    Parameters
    ----------
    dry_run
        Print what would be done, and do nothing.
    json
        Print a JSON object.
    """
    settings = running_settings()
    wanted = which.wanted(settings)
    from headwater.kafka import letters as found

    async def purging() -> int:
        letters = await found.read(settings)
        _check_reasons(wanted, letters)
        doomed = list(filter(wanted.takes, letters.open()))
        if not dry_run:
            await found.purge(settings, doomed)
        return len(doomed)

    count = _reached(settings, purging())
    if json:
        print_indented({"purged": count, "dry_run": dry_run})
    else:
        print(f"{_letters(count)} {'would be purged' if dry_run else 'purged'}")
    return 0


def _check_reasons(wanted: "Wanted", letters: "Letters") -> None:
    """A reason that no letter has is nothing to do, and one that none can have is a mistake."""
    from headwater.kafka.dead_letters import REASONS
    from headwater.kafka.letters import reasons

    known = {*REASONS, *reasons(letters.open()), *reasons(letters.redriven())}
    if unknown := sorted(set(wanted.reasons) - known):
        raise UsageError(f"--reason is {unknown[0]}: expected one of {', '.join(sorted(known))}")


def _since_ms(text: str, now_ms: int) -> int:
    age = _AGE.fullmatch(text)
    return now_ms - int(age[1]) * _UNITS_MS[age[2]] if age else moment_ms("--since", text)


def _topic_names(settings: "Settings") -> dict[str, str]:
    """Full names by their short ones: clicks, catalog, offers, requests, dead-letters."""
    from headwater.kafka.topics import Topics

    names = Topics.named(settings.topic_prefix)
    return {
        "clicks": names.clicks,
        "catalog": names.catalog,
        "offers": names.offers,
        "requests": names.requests,
        "dead-letters": names.dead_letters,
    }


def _reached(settings: "Settings", work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work on a broker that answers.

    Raises:
        NoBroker: it does not.
        CommandError: it refuses.
    """
    from aiokafka.errors import KafkaError

    from headwater.kafka import topics

    async def working() -> Result:
        try:
            await within_timeout(topics.reach(settings), settings)
        except BaseException:
            work.close()
            raise
        try:
            return await work
        except KafkaError as error:
            raise CommandError(
                f"the broker at {settings.bootstrap_servers} refused ({type(error).__name__}: {error}); look at its log, and "
                "at the rights of this user"
            ) from error

    return run_async(working())


def _progress() -> Callable[[int], None]:
    """Tells on standard error, every few seconds, how many letters are redriven."""
    told_s = time.monotonic()

    def tell(redriven: int) -> None:
        nonlocal told_s
        if time.monotonic() - told_s > _TOLD_EVERY_S:
            told_s = time.monotonic()
            say(f"{_letters(redriven)} redriven so far")

    return tell


def _letters(count: int) -> str:
    return "1 letter" if count == 1 else f"{count:,} letters"


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(max(at_ms, 0) / 1000))


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _pretty(value: bytes) -> str:
    """JSON with a field a line, and anything else as text."""
    formatted = indented(value)
    return decoded(value) or "" if formatted is None else formatted
