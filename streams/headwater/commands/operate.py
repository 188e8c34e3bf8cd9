"""`headwater doctor`, `settings`, `topics`, `metrics` and `schema`: inspect a system and its contracts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from headwater.commands.terminal import (
    FLAG,
    UsageError,
    print_indented,
    run_async,
    running_settings,
    running_web,
    say,
    stdout,
    tell,
    within_timeout,
)

if TYPE_CHECKING:
    from headwater.kafka.topics import Problem
    from headwater.settings import Settings

_HIDDEN: Final = "********"
# Settings whose default is found when it is needed: the property that says what is in force.
_RESOLVED: Final = {"kafka_bootstrap_servers": "bootstrap_servers", "bundle": "bundle_path"}


def doctor(*, role: Literal["all", "interests", "catalog", "operator", "client"] = "all") -> int:
    """Check the whole system: say what is wrong, and what to do.

    It looks at broker, topics, co-partitioning, rights, groups, lag, dead letters, bundle, index and worker.

    Example: headwater doctor

    Parameters
    ----------
    role
        Whose rights the Kafka user must have: those of a worker of one role or of both (all), of an operator who redrives and
        purges dead letters, or of a client that publishes and asks.
    """
    settings = running_settings()
    from headwater.commands.doctor import examine

    examined = examine(
        settings, running_web(settings), ("interests", "catalog") if role == "all" else (role,)
    )
    findings = run_async(examined)
    for finding in findings:
        tell(str(finding))
    return 1 if any(not finding.ok for finding in findings) else 0


class Setting(NamedTuple):
    """One setting in force: its environment variable, its value as text, and where the value comes from."""

    variable: str
    value: str
    origin: str


def show_settings(*, json: Annotated[bool, FLAG] = False) -> int:
    """Show every setting in force, and where its value comes from.

    An environment variable wins over the TOML file, the file over the running system, and that over the default.
    Secrets are hidden.

    Example: HEADWATER_PARTITIONS=12 headwater settings

    Parameters
    ----------
    json
        Print a JSON object of {"value", "from"} by variable.
    """
    from rich.table import Table

    from headwater import run_file
    from headwater.settings import Settings, config_file

    given = Settings.load()
    in_force, run = run_file.running_system(given), run_file.read(given)
    found = settings_in_force(
        given, in_force, os.environ, config_file(os.environ), f"process {run.pid}" if run else ""
    )
    if json:
        by_variable = {each.variable: {"value": each.value, "from": each.origin} for each in found}
        print_indented(by_variable)
        return 0
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for each in found:
        table.add_row(each.variable, each.value, each.origin)
    stdout().print(table)
    return 0


def settings_in_force(
    given: "Settings",
    in_force: "Settings",
    environment: Mapping[str, str],
    config: Path | None,
    run: str,
) -> list[Setting]:
    """All settings, in the order of their definition.

    Args:
        given: what environment, file and defaults say.
        in_force: the same, completed from the running system.
        config: the TOML file, if there is one.
        run: the running system, in words.
    """
    from headwater.settings import PREFIX

    variables = {name.upper() for name, value in environment.items() if value}
    found = []
    for name in type(in_force).model_fields:
        variable = f"{PREFIX}{name.upper()}"
        if variable in variables:
            origin = "environment"
        elif name in given.model_fields_set:
            origin = str(config)
        elif getattr(given, name) != getattr(in_force, name):
            origin = run
        else:
            origin = "default"
        found.append(Setting(variable, _shown(getattr(in_force, _RESOLVED.get(name, name))), origin))
    return found


def _shown(value: object) -> str:
    """A value as text, without secrets: neither one of its own nor a password in a URL."""
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, tuple) and value and isinstance(value[0], SecretStr):
        return _HIDDEN
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "not set"
    if isinstance(value, bool):
        return str(value).lower()
    text = "not set" if value is None else str(value)
    if "://" in text and (login := urlsplit(text).netloc.rpartition("@")[0]):
        return text.replace(login, _HIDDEN, 1)
    return text


def create() -> int:
    """Create the topics that are missing, then check all of them.

    Example: headwater topics create
    """
    settings = running_settings()
    from headwater.kafka import topics

    async def creating() -> "tuple[list[str], list[Problem]]":
        # A silent broker is reported at once; creating may take long.
        await within_timeout(topics.check(settings), settings)
        return await topics.create(settings), await topics.check(settings)

    created, problems = run_async(creating())
    for name in created:
        print(f"created {name}")
    if not created:
        print("nothing to create")
    return _report(problems)


def check() -> int:
    """Compare the topics with what they should be, and say what to do.

    Example: headwater topics check
    """
    settings = running_settings()
    from headwater.kafka import topics

    problems = run_async(within_timeout(topics.check(settings), settings))
    if not problems:
        print("all topics are as they should be")
    return _report(problems)


def accept() -> int:
    """Accept a clicks topic that was re-created, restored, or has lost its end. Stop the workers first.

    Workers refuse to start on another clicks topic than the one that their users come from. After this command every
    user is kept, and the clicks of the topic are applied; those that a user's log has already count once.

    Example: headwater topics accept
    """
    settings = running_settings()
    from headwater.profiles.clicks_log import accept as accept_log
    from headwater.profiles.clicks_log import patience_s

    work = within_timeout(accept_log(settings), settings, patience_s(settings))
    for partition, offset in run_async(work).items():
        print(f"accepted partition {partition}, which is read from offset {offset} on")
    return 0


def _report(problems: "Sequence[Problem]") -> int:
    """Print problems; the exit code of a command that found them."""
    for problem in problems:
        say(f"{'error' if problem.fatal else 'note'}: {problem}")
    return 1 if any(problem.fatal for problem in problems) else 0


def metrics() -> int:
    """Print what every metric means, and what to do when it looks wrong (Markdown).

    Example: headwater metrics | less
    """
    from headwater.metrics import reference

    print(reference(), end="")
    return 0


def schema(message: str | None = None, *, asyncapi: Annotated[bool, FLAG] = False) -> int:
    """Print the JSON Schema of one message, or of all by name; or the AsyncAPI document of the topics.

    Example: headwater schema Request

    Parameters
    ----------
    message
        One of Click, Item, Offer, Request, Response, ItemVector, OfferState, Trend, ErasureReceipt.
    asyncapi
        Print the topics, their messages, keys and headers as AsyncAPI 3, with names and configuration from the settings.
    """

    from headwater.messages import schemas

    known = schemas()
    if message is not None and asyncapi:
        raise UsageError(f"{message} beside --asyncapi: expected one of them, the document has all messages")
    if message is not None and message not in known:
        raise UsageError(f"{message} is no message: expected one of {', '.join(known)}")
    chosen = known[message] if message is not None else dict(known)
    if asyncapi:
        from headwater.docs.asyncapi import document

        chosen = document(running_settings())
    print_indented(chosen)
    return 0
