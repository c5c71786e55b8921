"""`imagebeam verify`: check every file of a finished run against its manifest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.common.console import say
from pipelines.common.fields import Options, flag
from pipelines.common.flags import JobParser, parse
from transforms.core.text import counted

DESCRIPTION = """\
Check a finished run of extract or classify: the bytes of every file against the manifest, the number of rows, repeated
keys, and values that are not numbers. The exit code is 3 where something is wrong. --discard removes the damaged files
and no others; the run's own command then makes them again."""

EXAMPLES = (
    "imagebeam verify out/photos",
    "imagebeam verify out/photos --discard",
)


@dataclass(frozen=True)
class VerifyOptions(Options):
    """The treatment of damaged files."""

    discard: bool = flag(
        "remove damaged files; the run's own command then makes them again", False, action="store_true"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `imagebeam verify`."""
    parser.add_argument("folder", metavar="DIR", help="output of extract or classify, local or gs://")
    VerifyOptions.add_arguments(parser, "verify")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0, or 3 where something is wrong."""
    from transforms import storage
    from transforms.core.errors import JobError
    from transforms.core.text import printable
    from transforms.runs.verify import discard, verify

    parser = JobParser("verify", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    folder = storage.absolute(args.folder)
    try:
        verdict = verify(folder)
        for damage in verdict.damages:
            sys.stdout.write(printable(f"{damage.uri}: {damage.problem}") + "\n")
        removed = discard(verdict.damages) if VerifyOptions.from_args(args).discard else None
    except OSError as error:
        raise JobError(f"The run cannot be read: {error}") from error
    if not verdict.damages:
        amount = f"{counted(verdict.parts, 'part')}, {counted(verdict.rows, 'row')}, {verdict.bytes:,} bytes"
        say(f"{amount}: as the manifest says.")
        return 0
    files = {uri for damage in verdict.damages for uri in damage.discard}
    say(f"{counted(len(verdict.damages), 'thing is', 'things are')} wrong with {folder}.")
    if removed is not None:
        say(f"Removed: {counted(removed, 'file')}. The run's own command, given again, makes only those anew.")
    elif files:
        say(f"To mend it: `imagebeam verify {folder} --discard`, then the run's own command, which makes them anew.")
    return 3


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("verify"))
