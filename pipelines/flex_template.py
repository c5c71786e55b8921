"""The Dataflow Flex Template of `imagebeam extract`: its parameters and their translation to flags.

python -m pipelines.flex_template > deploy/dataflow/metadata.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from pipelines import extract
from pipelines.common.flags import JobParser
from pipelines.options import dataflow
from pipelines.options.kept_columns import PRINTED_AS
from transforms.core.formats import KEEP_TYPES

LAUNCHER_FLAGS = ("--help", "--debug", "--local_workers", "--log_format", "--quiet")
"""Flags of extract that are no parameters: they are for somebody in front of a terminal, or for one machine."""

_GS = "gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_TYPE = "|".join([*KEEP_TYPES, *PRINTED_AS])
_COLUMN = rf"[^,:=]+(=[^,:=]+)?(:({_TYPE}|list<({_TYPE})>))?"

# What the flag's own type does not say.
_REGEXES = {
    "config": rf"^{_GS}/.+\.ya?ml$",
    "dicom_frame": "^([1-9][0-9]*|middle)$",
    "gpu": f"^({'|'.join(dataflow.GPUS)})$",
    "image_size": "^([1-9][0-9]*x[1-9][0-9]*|native|default)$",
    "input": rf"^{_GS}(/.*)?$",
    "int8_model": rf"^{_GS}(/.*)?$",
    "keep_columns": f"^{_COLUMN}(,{_COLUMN})*$",
    "output": rf"^{_GS}(/.*)?$",
    "weights": rf"^(imagenet|none|random:[0-9]+|{_GS}/.+\.(h5|hdf5|keras|npz|onnx|safetensors))$",
}
_SHARE = r"^(0|1|0?\.[0-9]+|0\.|1\.0*)$"

_IMAGE = {
    "name": "sdk_container_image",
    "label": "Sdk container image",
    "helpText": "Image of the workers: the one this template was built from.",
    "isOptional": False,
    "regexes": [r"^[^\s/]+(/[^\s/]+)+(:[\w.-]+|@sha256:[0-9a-f]{64})$"],
}


def metadata() -> dict[str, Any]:
    """What the template says of itself, as `gcloud dataflow flex-template build --metadata-file` takes it."""
    parser = extract_parser()
    flags = [action for name, action in parser.flags.items() if name not in LAUNCHER_FLAGS]
    return {
        "name": "Imagebeam extract",
        "description": " ".join(extract.DESCRIPTION.split()),
        "parameters": [*map(_parameter, flags), _IMAGE],
    }


def extract_parser() -> JobParser:
    """The argument parser of `imagebeam extract`."""
    parser = JobParser("extract", extract.DESCRIPTION, beam=True)
    extract.add_arguments(parser)
    return parser


def arguments(parameters: Sequence[str]) -> list[str]:
    """The template launcher's arguments as flags: it writes every parameter as ``--name=value``, switches too."""
    switches = {name for name, action in extract_parser().flags.items() if action.nargs == 0}
    flags = []
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name in switches and value in ("true", "false"):
            flags += [name] if value == "true" else []
        else:
            flags.append(parameter)
    return flags


def _parameter(action: argparse.Action) -> dict[str, Any]:
    name = action.option_strings[0].removeprefix("--")
    text = str(action.help).removesuffix(" (required)").replace(", local or gs://", " on gs://")
    if action.nargs == 0:
        text += "; true or false (default: false)"
    elif not isinstance(action, argparse._StoreAction):
        text = f"{text.replace('; may be given several times', '')}; one here, several in a config file"
    if action.required:
        text += "; required, here or in a config file"
    return {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": f"{text[0].upper()}{text[1:]}.",
        "isOptional": True,
        "regexes": [_REGEXES.get(name) or _regex(action)],
    }


def _regex(action: argparse.Action) -> str:
    """What values a flag takes, as far as its type tells."""
    if action.nargs == 0:
        return "^(true|false)$"
    if action.type is int:
        return "^[1-9][0-9]*$"
    if action.type is float:
        return _SHARE
    if isinstance(action.metavar, str) and "|" in action.metavar:
        return f"^({action.metavar})$"
    return "^.+$"


if __name__ == "__main__":
    json.dump(metadata(), sys.stdout, indent=2)
    sys.stdout.write("\n")
