"""The console script: `headwater`, or `python -m headwater`."""

from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, or say which install brings it."""
    try:
        from headwater.commands.main import main as run
    except ModuleNotFoundError as error:
        if (error.name or "headwater").partition(".")[0] == "headwater":
            raise
        raise SystemExit(
            f"headwater: this is the client's install, and the command line needs {error.name}: "
            "install the extra cpu or gpu, from a checkout: pip install '.[cpu]'"
        ) from None
    run()


if __name__ == "__main__":
    main()
