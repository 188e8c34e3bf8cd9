"""`headwater topics`, `doctor`, `schema` and `metrics`: look at a system and at what it promises."""

import sys
from typing import Any

from headwater.commands.terminal import CommandError, run_async, running_settings, running_web, within_timeout


def create() -> int:
    """Create the topics that are missing, then check all of them."""
    from headwater.kafka import topics

    settings = running_settings()

    async def creating() -> tuple[list[str], list[Any]]:
        await within_timeout(
            topics.check(settings), settings
        )  # a broker that is silent is told at once; creating may take long
        return await topics.create(settings), await topics.check(settings)

    created, problems = run_async(creating())
    for name in created:
        print(f"created {name}")
    if not created:
        print("nothing to create")
    return print_problems(problems)


def check() -> int:
    """Compare the topics with what they have to be, and say what to do."""
    from headwater.kafka import topics

    settings = running_settings()
    problems = run_async(within_timeout(topics.check(settings), settings))
    if not problems:
        print("all topics are as they have to be")
    return print_problems(problems)


def print_problems(problems: list[Any]) -> int:
    for problem in problems:
        print(f"{'error' if problem.fatal else 'note'}: {problem}", file=sys.stderr)
    return 1 if any(problem.fatal for problem in problems) else 0


def doctor() -> int:
    """Look at broker, topics, co-partitioning, groups, lag, index and bundle; say what is wrong and what to do."""
    from headwater.commands.doctor import examine

    settings = running_settings()
    findings = run_async(examine(settings, running_web()))
    for finding in findings:
        print(finding)
    return 1 if any(not finding.ok for finding in findings) else 0


def schema(message: str | None = None) -> int:
    """Print the JSON Schema of one message, or of all by name.

    Parameters
    ----------
    message
        Click, Item, Request, Response, ItemVector or Trend.
    """
    import msgspec

    from headwater.messages import schemas

    known = schemas()
    if message is not None and message not in known:
        raise CommandError(f"{message} is no message: expected one of {', '.join(known)}")
    chosen = known[message] if message is not None else dict(known)
    print(msgspec.json.format(msgspec.json.encode(chosen)).decode())
    return 0


def metrics() -> int:
    """Print what every metric means, and what to do when it looks wrong (Markdown)."""
    from headwater.metrics import reference

    print(reference(), end="")
    return 0
