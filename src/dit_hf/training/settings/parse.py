"""Settings from flags, from a YAML file, or from both."""

import dataclasses
import difflib
import json
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..setting_row import rows
from ..techniques import TECHNIQUES
from .model_fields import DECIDED, ModelFields
from .table import TrainSettings, all_rows


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Print the default of a setting, but not None, of which the help says what it means."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default in (None, SUPPRESS) else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """A parser that raises what is wrong in one line, where argparse would print the usage of all settings."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser_fields(settings_class: type) -> Any:
    """Return settings as a dataclass that HfArgumentParser reads, which passes all metadata on to argparse.

    A flag of a `bool | None` needs no argument, as that of a `bool`.
    """
    hints = get_type_hints(settings_class)
    return dataclasses.make_dataclass(
        settings_class.__name__,
        [
            (
                field.name,
                bool if hints[field.name] == bool | None else hints[field.name],
                dataclasses.field(default=field.default, metadata={"help": help}),
            )
            for field in sorted(dataclasses.fields(settings_class), key=lambda field: field.name in rows(ModelFields))
            if field.name in rows(settings_class)
            for help in [field.metadata["help"].replace("%", "%%")]
        ],
    )


def parse_settings(arguments: Sequence[str]) -> TrainSettings:
    """Read settings from `[FILE.yaml] [--flag value ...]`; a flag overrides the file.

    Raises:
        ValueError: If a flag or a key of the file is unknown, with the closest name, or if a value is not possible.
    """
    arguments = list(arguments)
    in_file: dict[str, Any] = {}
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        in_file = read_yaml(Path(arguments.pop(0)))
    classes = [TrainSettings, *(technique.Settings for technique in TECHNIQUES.values())]
    parser = _Parser([_parser_fields(each) for each in classes], formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.set_defaults(**in_file)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        _refuse_unknown("the command line", unknown[0], "--")

    def pick(settings_class: type) -> dict[str, Any]:
        return {name: getattr(parsed, name) for name in rows(settings_class)}

    techniques = {name: each.Settings(**pick(each.Settings)) for name, each in TECHNIQUES.items()}
    return TrainSettings(**pick(TrainSettings), techniques=techniques)


def _refuse_unknown(place: str, name: str, prefix: str = "") -> NoReturn:
    given = name.removeprefix(prefix).partition("=")[0]
    if given in DECIDED:
        raise ValueError(f"{place} sets {name!r}, which {prefix}{DECIDED[given]} decides: leave it out")
    close = difflib.get_close_matches(given, all_rows(), n=1)
    raise ValueError(
        f"{place} sets {name!r}, which is not a setting" + (f": {prefix + close[0]!r} is" if close else "")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file, with relative paths resolved.

    Raises:
        ValueError: If a key is not a setting.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}: write lines of the form `setting: value`")
    for key, value in values.items():
        if key not in all_rows():
            _refuse_unknown(str(path), key)
        if isinstance(value, str) and value.startswith(("./", "../")):
            values[key] = str((path.parent / value).resolve())
        if isinstance(value, dict):
            values[key] = json.dumps(value)
    if values.get("mixed_precision") is False:  # an unquoted "no" of YAML
        values["mixed_precision"] = "no"
    return values
