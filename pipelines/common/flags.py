"""Parse a job's command line: flags, defaults from a YAML file, and Beam's own flags."""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pipelines.common import beam_flags, log
from pipelines.common.fields import MOST_USED
from transforms.core.errors import ImagebeamError

_FRAME = ("help", "config", "debug")
"""Flags of the frame: read by `parse` and `pipelines.cli`, and meaningless inside a config file."""


class _Parser(argparse.ArgumentParser):
    """No abbreviations, and a mistake is an `ImagebeamError`: errors are printed in one place, `pipelines.cli`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        stop = "" if message.endswith((".", "?")) else "."
        raise ImagebeamError(f"{message}{stop} `{self.prog} --help` explains every flag.")

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Flag, as "--name" -> its action."""
        return {name: action for action in self._actions for name in action.option_strings if name.startswith("--")}


class JobParser(_Parser):
    """A job's argument parser, with the flags of the frame.

    Args:
        job: the job's name on the command line, such as "extract".
        description: what the job does; stands at the top of its help.
        examples: commands, which stand at its end.
        beam: whether the job runs on Beam, so that Beam's flags are taken too.
    """

    def __init__(
        self, job: str, description: str | None = None, examples: Sequence[str] = (), *, beam: bool = False
    ) -> None:
        epilog = "Every other flag is handed to Apache Beam (--runner, --sdk_container_image, ...)." if beam else None
        super().__init__(prog=f"imagebeam {job}", description=description, epilog=epilog)
        self.beam = beam
        self.examples = examples
        self._optionals.title = "flags of every job"
        self.add_argument(
            "--config",
            metavar="FILE.yaml",
            help="YAML file of flags, local or gs://; its keys are the flags' names without dashes. Flags on the "
            "command line win",
        )
        self.add_argument(
            "--log_format",
            choices=log.FORMATS,
            default="text",
            metavar="|".join(log.FORMATS),
            help="format of the lines on stderr; json writes one object a line, the last one with totals and the exit "
            "code (default: text)",
        )
        self.add_argument("--quiet", action="store_true", help="print warnings and errors only")
        self.add_argument("--debug", action="store_true", help="print tracebacks, and what libraries log")

    def format_usage(self) -> str:
        """What a command must have; the rest of it is explained below."""
        needed = [action for action in self._actions if action.required or not action.option_strings]
        words = [f"usage: {self.prog}", *map(_spelled, needed), "[flags]"]
        return " ".join(words) + "\n"

    def format_help(self) -> str:
        """Format the help: the most used flags first, common flags last."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for group in sorted(self._action_groups, key=self._place):
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        examples = "\n  ".join(("\nexamples:", *self.examples)) + "\n" if self.examples else ""
        return f"{self.format_usage()}\n{formatter.format_help()}{examples}"

    def _place(self, group: argparse._ArgumentGroup) -> int:
        return 0 if group.title == MOST_USED else 2 if group is self._optionals else 1


class _BeamParser(_Parser):
    """Of Beam's flags, which no job's help explains."""

    def error(self, message: str) -> NoReturn:
        raise ImagebeamError(f"{message.rstrip('.')}. Apache Beam explains this flag of its own, not imagebeam.")


def _spelled(action: argparse.Action) -> str:
    """A required argument as it is written."""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    value = {"+": f"{value} ...", "?": f"[{value}]"}.get(str(action.nargs), value)
    return " ".join([*action.option_strings[:1], value])


def parse(parser: JobParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read a job's command line.

    Args:
        parser: with the job's arguments added.
        argv: the arguments after the job's name.

    Returns:
        The job's own arguments, and the flags left for Beam (empty for a job that does not run on Beam).

    Raises:
        ImagebeamError: for an unknown flag, key or argument, naming the nearest valid ones, or a value out of range.
    """
    finder = _Parser(prog=parser.prog, add_help=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    # The file's values stand before the flags: of a one-value flag argparse takes the last, and the values of a
    # repeatable one, which would add up, are left out of the file's as soon as the flag is given.
    merged = [*(_config_arguments(parser, path, argv) if path is not None else ()), *argv]
    _refuse_unknown_flags(parser, merged)
    args, rest = parser.parse_known_args(merged)
    if parser.beam:
        _refuse_unknown_runner(parser, rest)
    stray = _beam_parser().parse_known_args(rest)[1] if rest and parser.beam else rest
    if stray:
        parser.error(f"unexpected argument {stray[0]!r}")
    if rest:
        _give_to_file_systems(rest)
    log.configure(args.log_format, quiet=args.quiet)
    return args, rest


def _give_to_file_systems(beam_args: Sequence[str]) -> None:
    """Let Beam's file systems read flags such as --s3_endpoint_url: inputs are listed before there is a pipeline."""
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    FileSystems.set_options(PipelineOptions(list(beam_args)))


def _flag_names(argv: Sequence[str]) -> Iterator[str]:
    """The long flags in an argument list, without their values: argparse takes no "--x" for a value either."""
    for token in argv:
        if token == "--":
            return
        if token.startswith("--"):
            yield token.split("=", 1)[0]


def _refuse_unknown_flags(parser: JobParser, argv: Sequence[str]) -> None:
    """Looked at before argparse runs, which would complain first of the required flag that was misspelt."""
    ours = parser.flags
    unknown = [name for name in _flag_names(argv) if name not in ours]
    if not unknown:
        return
    beams = _beam_flag_names() if parser.beam else frozenset()
    for name in unknown:
        if name not in beams:
            nearest = difflib.get_close_matches(name, [*ours, *beams], n=3, cutoff=0.6)
            hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
            parser.error(f"unknown flag {name}{hint}")


def _refuse_unknown_runner(parser: JobParser, rest: Sequence[str]) -> None:
    """Beam would refuse it as late as the pipeline is made."""
    runners = beam_flags.RUNNERS.get(_beam_version())
    if runners is None:
        return
    finder = _Parser(prog=parser.prog, add_help=False)
    finder.add_argument("--runner")
    runner = finder.parse_known_args(rest)[0].runner
    if runner is None or "." in runner or {runner.lower(), f"{runner.lower()}runner"} & runners:
        return
    nearest = difflib.get_close_matches(runner.lower(), runners, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"known are {', '.join(sorted(runners))}"
    parser.error(f"unknown runner {runner!r}; {hint}")


def _beam_version() -> str:
    return importlib.metadata.version("apache-beam")


def _beam_flag_names() -> frozenset[str]:
    """Every flag of Beam, as "--name"."""
    return beam_flags.FLAGS.get(_beam_version()) or frozenset(_beam_parser().flags)


def _beam_action(name: str) -> argparse.Action | None:
    return _beam_parser().flags.get(name) if name in _beam_flag_names() else None


@functools.cache
def _beam_parser() -> _Parser:
    """A parser of every flag that the installed Beam declares."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = _BeamParser(add_help=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser


def _config_arguments(parser: JobParser, path: str, argv: Sequence[str]) -> list[str]:
    """The flags of a config file that the command line does not give itself, as arguments."""
    ours = {flag.removeprefix("--"): action for flag, action in parser.flags.items()}
    for name in _FRAME:
        del ours[name]
    given = set(_flag_names(argv))
    arguments = []
    for key, value in _load_config(path).items():
        action = ours.get(key) or (_beam_action(f"--{key}") if parser.beam else None)
        if action is None:
            nearest = difflib.get_close_matches(str(key), ours, n=3, cutoff=0.6)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"valid are {', '.join(ours)}"
            raise ImagebeamError(f"{path}: unknown key {key!r}; {hint}")
        if f"--{key}" not in given:
            probe = _Parser(prog=parser.prog, add_help=False) if key in ours else _BeamParser(add_help=False)
            arguments += _config_values(action, f"--{key}", value, path, probe)
    return arguments


def _load_config(path: str) -> dict[Any, Any]:
    import yaml

    from transforms import storage

    try:
        content = yaml.load(storage.read_bytes(storage.absolute(path)).decode(), Loader=_plain_loader())
    except OSError as error:
        raise ImagebeamError(f"--config cannot be read: {error.strerror or error}. Received: {path!r}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ImagebeamError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ImagebeamError(f"{path}: expected lines of `flag: value`. Received: a {type(content).__name__}.")
    return content


def _config_values(action: argparse.Action, flag: str, value: Any, path: str, probe: _Parser) -> list[str]:
    """Convert one key of a config file to arguments, tried by an empty parser; name the file in errors."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ImagebeamError(f"{path}: {flag[2:]} is true or false. Received: {value!r}.")
        return [flag] if value else []
    repeatable = not isinstance(action, argparse._StoreAction)  # "append", "extend", and Beam's own that add up
    values = value if isinstance(value, list) and repeatable else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            expected = "a value or a list of values" if repeatable else "one value"
            raise ImagebeamError(f"{path}: {flag[2:]} takes {expected} (quote a word YAML reads). Received: {one!r}.")
    arguments = [f"{flag}={one}" for one in values]
    probe._add_action(action)
    try:
        probe.parse_args(arguments)
    except ImagebeamError as error:
        raise ImagebeamError(f"{path}: {error}") from None
    return arguments


def _plain_loader() -> Any:
    """YAML's safe loader without aliases, which can expand a few hundred bytes to gigabytes, and without repeated keys.

    YAML forbids a key to be repeated; PyYAML takes the last one, and loses the others in silence.
    """
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not taken; write the value out")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for place, key in enumerate(keys):
                if key in keys[:place]:
                    raise yaml.YAMLError(f"the key {key!r} stands there twice; several values are a list: [A, B]")
            return super().construct_mapping(node, deep)

    return PlainLoader
