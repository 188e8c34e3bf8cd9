"""The command line. Standard output carries results only; progress, logs and errors go to standard error.

A user's mistake ends as one sentence with its remedy. Commands are registered by their import path, and import inside
their functions what is heavy, so that `headwater --help` and `headwater COMMAND --help` answer at once.
"""

import faulthandler
import os
import sys
from typing import Any, Final, NoReturn

from cyclopts import App

from headwater import __version__
from headwater.errors import HeadwaterError

_COMMANDS: Final = "headwater.commands"
_EXTRA_OF: Final = {
    "torch": "train",
    "onnx": "train",
    "onnxscript": "train",
    "safetensors": "train",
    "scipy": "train",
    "threadpoolctl": "train",
    "implicit": "train",
    "optuna": "train",
    "optimum": "export",
    "transformers": "export",
    "onnxruntime": "cpu",
}


class _App(App):
    """A list of commands shows the first line of each, so its help loads the files of all that it lists."""

    def help_print(self, tokens: Any = None, *args: Any, **options: Any) -> None:
        *_, listed = self.parse_commands(tokens)[1]
        listed.resolved_commands()
        super().help_print(tokens, *args, **options)


def _app() -> App:
    app = _App(
        name="headwater",
        help="Streaming real-time recall: a click changes the next answer, and the answer proves it.",
        version=__version__,
        version_flags=["--version", "-V"],
    )
    for name in ("demo", "up", "worker"):
        app.command(f"{_COMMANDS}.run:{name}")
    topics = _App(name="topics", help="Create or check the topics.")
    for name in ("create", "check"):
        topics.command(f"{_COMMANDS}.operate:{name}")
    app.command(topics)
    files = _App(name="import", help="Publish a CSV, Parquet or JSON lines file.")
    for name in ("catalog", "clicks"):
        files.command(f"{_COMMANDS}.publish:{name}")
    app.command(files)
    for name in ("click", "ask", "user"):
        app.command(f"{_COMMANDS}.ask:{name}")
    for name in ("doctor", "schema", "metrics"):
        app.command(f"{_COMMANDS}.operate:{name}")
    for name in ("train", "evaluate", "tune", "export"):
        app.command(f"{_COMMANDS}.models:{name}")
    bundle = _App(name="bundle", help="Show a bundle, or make one that needs no training.")
    for name in ("show", "mean", "lighten", "compare"):
        bundle.command(f"{_COMMANDS}.models:{name}")
    app.command(bundle)
    return app


app = _app()


def main() -> NoReturn:
    """The console script."""
    if sys.stderr is not None:
        faulthandler.enable()  # where native code ends the process, it ends with the place
    try:
        code = app(result_action="return_value")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output has enough (`headwater metrics | head`); what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(
            f"{error.name} is not installed: install Headwater with its extra `{extra}`: pip install 'headwater[{extra}]'"
        )
    except HeadwaterError as error:
        _fail(" ".join(str(error).split()))
    raise SystemExit(code if isinstance(code, int) else 0)


def _fail(sentence: str) -> NoReturn:
    print(f"headwater: {sentence}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
