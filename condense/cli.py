"""The command line: `condense doctor FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from condense.captures.reader import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code is 0 where it succeeded."""
    parser = argparse.ArgumentParser(prog="condense", description="Joint 2D-3D pre-training from posed images.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("doctor", help="say what is wrong with the captures in a folder")
    command.add_argument("folder", type=Path, help="a capture or a folder of captures (directories or .zip)")
    command.set_defaults(run=lambda options: run_doctor(options.folder))

    options = parser.parse_args(arguments)
    return int(options.run(options))


def run_doctor(folder: Path) -> int:
    """Prints the data-quality list; 0 if at least one capture can be used, else 1."""
    try:
        text, usable = doctor(folder)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    print(text)
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
