"""Messages in the words of the command line, for errors that are written for people who call Python functions."""

import re
from collections.abc import Iterable

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
