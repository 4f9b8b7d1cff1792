"""Messages in the words of the command line, for errors that are written for people who call Python functions."""

import contextlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

CHOICES = re.compile(r"(\bchoose from [^:;]*)")


def in_flags(message: str, options: Iterable[str], separator: str = "-") -> str:
    """Write the arguments that a message names as options: "num_images=0" becomes "--num-images 0".

    Of an entry of a list, such as "class_labels[1]=-1", the value is named. A list of choices, such as "choose from
    fid, precision_recall", stays as it is, because a value may be called like an option.

    Args:
        message: Message of an error, written for people who call Python functions.
        options: Names of the options as Python writes them, such as "num_images".
        separator: Character between the words of an option: "-", or "_" for the settings of a training.
    """
    options = list(options)
    parts = CHOICES.split(message)  # every second part is a list of choices
    return "".join(part if number % 2 else _in_flags(part, options, separator) for number, part in enumerate(parts))


def _in_flags(message: str, options: Iterable[str], separator: str) -> str:
    for name in options:
        flag = f"--{name.replace('_', separator)}"
        message = re.sub(rf"(?<![\w.-]){name}=None\b", f"{flag} none", message)
        message = re.sub(rf"(?<![\w.-]){name}(\[\d+\])?=(?=\S)", f"{flag} ", message)
        if "_" in name:  # a single word may just be a word
            message = re.sub(rf"(?<![\w.-]){name}(?![\w.(=-])", flag, message)
    return message


class LogLine(logging.Formatter):
    """A message alone: without the rank that Accelerate puts before it, if there is one process only."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.removeprefix("[RANK 0] ") if os.environ.get("WORLD_SIZE", "1") == "1" else text


def print_log() -> None:
    """Print what this package logs as information, unless the program around it has set up a log of its own."""
    if not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(LogLine())
        logging.root.addHandler(handler)
    logging.getLogger("dit_hf").setLevel(logging.INFO)


def exit_with_line(error: Exception, settings: Iterable[str]) -> NoReturn:
    """End one process of a training with one line on standard error, and exit code 1.

    torchrun and `accelerate launch --multi_gpu` end with a report of their own. It repeats the line, because they look
    for it in the file that `TORCHELASTIC_ERROR_FILE` names; otherwise it would send the reader to a page about torch.

    Args:
        error: What ended the training.
        settings: Names of the settings that the message may speak of.
    """
    rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    line = f"error: {rank}{in_flags(' '.join(str(error).split()), settings, '_')}"
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):  # the report then lacks the line, which is printed all the same
            Path(report).write_text(json.dumps(content), encoding="utf-8")
    sys.exit(line)
