"""The command line as its users meet it: processes, what they print where, and how they end."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.checkout import ROOT


class Terminal:
    """A shell in a folder of its own, with no settings but the given ones."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
        own = {
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "XDG_STATE_HOME": str(folder / "state"),
        }
        self.environment = {**kept, **own, **settings}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "headwater.commands.main", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def succeeds(self, *arguments: str) -> str:
        """What the command prints on standard output."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fails(self, *arguments: str, code: int) -> str:
        """The sentence: one line with our name before it, the exit code, and nothing on standard output."""
        done = self.run(*arguments)
        assert "Traceback" not in done.stderr, done.stderr
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("headwater: ")
        return last

    def mistakes(self, *commands: Sequence[str]) -> list[str]:
        """The sentence of each command line, all of which cannot be read. One process reads them all, which saves its start."""
        code = (
            "import sys\n"
            "from headwater.commands.main import main\n"
            f"for words in {[list(words) for words in commands]!r}:\n"
            "    try: main(words)\n"
            "    except SystemExit as end: print(end.code)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert done.stdout == "2\n" * len(commands), done
        sentences = done.stderr.splitlines()
        assert len(sentences) == len(commands), done.stderr
        assert all(sentence.startswith("headwater: ") for sentence in sentences)
        return sentences


def children_of(pid: int) -> list[int]:
    """Live processes that `pid` started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().rpartition(")")
            if int(fields.split()[1]) == pid:
                found.append(int(name.split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
