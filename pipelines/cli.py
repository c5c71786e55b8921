"""The `imagebeam` command: run a job and print its errors.

Exit codes: 0 all is well; 1 the job failed; 2 the command or its input is wrong; 3 the job finished, but something it
was told to check does not hold (too many failures, too low an accuracy); 130 interrupted by Control-C;
143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.common import log
from transforms.core.errors import ImagebeamError, JobError, without_arguments
from transforms.core.installed import EXTRAS, lacking
from transforms.models.architectures import nearest
from transforms.models.keras_import import import_without_unused


class ExitCode(enum.IntEnum):
    """What the process tells a scheduler."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CHECK_FAILED = 3
    INTERRUPTED = 130
    TERMINATED = 143


class Job(NamedTuple):
    """A job's module, which offers `main(argv) -> int`, and its line in the help."""

    module: str
    help: str


JOBS = {
    "extract": Job("pipelines.extract", "image shards -> embeddings in Parquet"),
    "plan": Job("pipelines.plan", "what extract would do: units, sizes, time and bytes; writes nothing"),
    "layers": Job("pipelines.layers", "a model's layers: names, output shapes, vector lengths"),
    "train": Job("pipelines.train", "embeddings -> a dense classifier"),
    "finetune": Job("pipelines.finetune", "image shards -> a backbone and a classifier trained together"),
    "classify": Job("pipelines.classify", "image shards, or embeddings -> labels"),
    "compare": Job("pipelines.compare", "outputs of extract over the same images -> which embedding is the better one"),
    "export": Job(
        "pipelines.export", "a classifier or embedder -> SavedModel, TFLite, ONNX or OpenVINO, compared with it"
    ),
    "report": Job("pipelines.report", "a run's folder -> report.html"),
    "verify": Job("pipelines.verify", "check every byte of a run's output against its manifest"),
    "compact": Job("pipelines.compact", "copy a run's rows into few large files, for warehouses"),
    "demo": Job("pipelines.demo", "digits -> embeddings -> a classifier, in a few minutes"),
}


_PRINT_RESULTS = ("compare", "layers", "plan")
"""Jobs whose result is what they print, so that a reader who leaves ends them."""

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python begins where none of the usual folders can be written, as in a container with a read-only root."""

_NO_DOCSTRINGS = "Beam needs its docstrings, which -OO and PYTHONOPTIMIZE=2 leave out: do without, or take 1."

_GO_ON = "what was committed stays, and the same command goes on from there"


def main(argv: Sequence[str] | None = None) -> int:
    """The console script.

    Args:
        argv: without the program's name; None for the process's own.

    Returns:
        An `ExitCode`.
    """
    arguments = _own_arguments() if argv is None else list(argv)
    parser = _parser()
    if not arguments:
        parser.print_help(sys.stderr)
        return ExitCode.USAGE
    job = arguments[0]
    if job.startswith("-"):
        parser.parse_args(arguments[:1])  # --help and --version print and exit; anything else is an error
    if job not in JOBS:
        nearby = nearest(job, tuple(JOBS), most=1)
        return _fail(f"error: no such job: {job!r}. {nearby} `imagebeam --help` describes them.", ExitCode.USAGE)
    return run_job(job, arguments[1:])


def _own_arguments() -> list[str]:
    """Of this process, which is the job's alone."""
    import_without_unused()
    # Plots are files. A notebook's kernel names a backend of its own, which need not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    return sys.argv[1:]


def run_job(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one job, as `imagebeam <name>` and `python -m pipelines.<name>` do; an error becomes one line.

    Args:
        name: a key of `JOBS`.
        argv: the arguments after the job's name; None for the process's own.

    Returns:
        An `ExitCode`.
    """
    arguments = _own_arguments() if argv is None else list(argv)
    debug = "--debug" in arguments
    if not debug:
        # TensorFlow's start-up notes concern nobody who runs a job; it reads this when it is first imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with log.logging_as(arguments, steady_stdout=name not in _PRINT_RESULTS), log.stopping_on_sigterm():
        code = _run(name, arguments, debug=debug)
        log.emit_end(name, code)
    return code


def _run(name: str, arguments: list[str], *, debug: bool) -> int:
    """`run_job` once the log is set up."""
    try:
        code: int = importlib.import_module(JOBS[name].module).main(arguments)
        sys.stdout.flush()
        return code
    except ImagebeamError as error:
        return _fail(f"error: {error}", ExitCode.USAGE, debug=debug)
    except JobError as error:
        return _fail(f"error: {error}", ExitCode.FAILED, debug=debug)
    except log.Terminated:
        return _fail(f"ended by SIGTERM; {_GO_ON}", ExitCode.TERMINATED)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_GO_ON}", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (`imagebeam layers | head`); Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except OSError as error:
        if error.filename is None and _NO_TEMPORARY_FOLDER in str(error):
            return _fail(f"error: {error.strerror}. Set TMPDIR to a folder that can be written.", ExitCode.USAGE)
        return _fail(f"error: {error}", ExitCode.FAILED, debug=debug)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            return _fail(f"internal error: {_in_one_line(error)}", ExitCode.FAILED, debug=debug)
        return _fail(f"error: {lacking(module)}", ExitCode.USAGE, debug=debug)
    except Exception as error:
        if sys.flags.optimize > 1:
            message = f"error: {_in_one_line(error)}. {_NO_DOCSTRINGS}"
            return _fail(message, ExitCode.USAGE, debug=debug)
        hint = "" if debug else "; run again with --debug for the traceback"
        return _fail(f"internal error: {_in_one_line(error)}{hint}", ExitCode.FAILED, debug=debug)


def _parser() -> argparse.ArgumentParser:
    """The frame's own flags; jobs declare theirs in their modules, which are not imported for this."""
    width = max(map(len, JOBS))
    jobs = "\n".join(f"  {name:<{width}}  {job.help}" for name, job in JOBS.items())
    parser = argparse.ArgumentParser(
        prog="imagebeam",
        usage="imagebeam <job> [flags]",
        description="Distributed batch image embeddings: image shards in, Parquet out, on Apache Beam and Keras.",
        epilog=f"jobs:\n{jobs}\n\n`imagebeam <job> --help` explains a job's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    return parser


class _Version(argparse.Action):
    """Prints the installed version; looks it up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("imagebeam")
        except PackageNotFoundError:
            found = "(not installed: run from its folder)"
        sys.stdout.write(f"imagebeam {found}\n")
        parser.exit()


def _fail(message: str, code: ExitCode, *, debug: bool = False) -> ExitCode:
    """Print the error being handled, if any, and the message; pass the code on."""
    trace = traceback.format_exc().rstrip() if debug and sys.exc_info()[0] else None
    if trace and not log.SETTINGS.json:
        sys.stderr.write(log.harmless(trace) + "\n")
    fields = {"traceback": trace} if trace else {}
    log.emit(f"imagebeam: {message}", severity="ERROR", **fields)
    return code


def _in_one_line(error: Exception) -> str:
    """A runner's errors carry a worker's whole traceback in their message: its last line says what happened."""
    lines = [line.strip() for line in without_arguments(str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "Traceback" in str(error) else f"{type(error).__name__}: {lines[0]}"


if __name__ == "__main__":
    sys.exit(main())
