"""`imagebeam compact`: copy a finished run's rows into few large files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.common.console import say
from pipelines.common.fields import Options, flag
from pipelines.common.flags import JobParser, parse
from transforms.core.errors import ImagebeamError
from transforms.core.text import counted

DESCRIPTION = """\
Copy the rows of a finished run of extract or classify into few large Parquet files, as BigQuery and other warehouses
prefer. The run is not changed; train, classify and a rerun of it read the run, not the copy. Every part is checked
against the manifest, and every file of the copy is read back and compared."""

EXAMPLES = (
    "imagebeam compact out/photos --output out/photos-compact",
    "imagebeam compact gs://BUCKET/out --output gs://BUCKET/copy --rows_per_file 1000000",
)


@dataclass(frozen=True)
class CompactOptions(Options):
    """Where the copy goes, and how its files are cut."""

    output: str = flag("folder of the copy, local or gs://: an empty one, or that of an unfinished copy", metavar="DIR")
    rows_per_file: int = flag("rows in a file", 500_000, type=int, metavar="N")
    rows_per_group: int = flag("rows in a row group; so many are held in memory", 32_768, type=int, metavar="N")

    def __post_init__(self) -> None:
        if not self.output:
            raise ImagebeamError(f"--output is a folder. Received: {self.output!r}.")
        for name in ("rows_per_file", "rows_per_group"):
            if getattr(self, name) < 1:
                raise ImagebeamError(f"--{name} is at least 1. Received: {getattr(self, name)}.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `imagebeam compact`."""
    parser.add_argument("folder", metavar="RUN", help="output of extract or classify, local or gs://")
    CompactOptions.add_arguments(parser, "copy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code is 0."""
    from transforms import storage
    from transforms.core.errors import JobError, refused
    from transforms.runs.compact import compact

    parser = JobParser("compact", DESCRIPTION, EXAMPLES)
    add_arguments(parser)
    args, _ = parse(parser, sys.argv[1:] if argv is None else argv)
    options = CompactOptions.from_args(args)
    folder, output = storage.absolute(args.folder), storage.absolute(options.output)
    if f"{storage.real(output)}/".startswith(f"{storage.real(folder).rstrip('/')}/"):
        raise ImagebeamError(f"The copy would lie in the run's own folder. Received: --output {options.output!r}.")
    try:
        copied = compact(folder, output, options.rows_per_file, options.rows_per_group)
    except OSError as error:
        raise refused(f"The run cannot be copied: {error}. Received: --output {options.output!r}.", error) from error
    except ValueError as error:
        raise JobError(f"The run cannot be copied: {error}") from error
    amount = f"{counted(copied.rows, 'row')} in {counted(copied.files, 'file')}, {copied.bytes:,} bytes"
    say(f"{amount}, equal to those of {folder}: {output}")
    return 0


if __name__ == "__main__":
    from pipelines.cli import run_job

    sys.exit(run_job("compact"))
