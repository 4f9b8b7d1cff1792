"""The application that the commands are added to, and `main`, which runs it.

A command imports torch and the other rooms when it runs: the help and the errors of the command line come without them.
"""

import logging
import sys
import warnings
from typing import Annotated, Any, Literal, TextIO

import typer

from .. import __version__, register_auto_classes
from ..flags import in_flags

DtypeName = Literal["float32", "bfloat16", "float16"]


class Command(typer.core.TyperCommand):
    """A command that registers DiT with transformers' Auto classes after its arguments were parsed."""

    def invoke(self, ctx: typer.Context) -> Any:
        register_auto_classes()
        return super().invoke(ctx)


app = typer.Typer(
    name="dit-hf",
    help="Diffusion Transformers (DiT) in the Hugging Face ecosystem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` prints one line instead
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # accepts --num_images as well
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"dit-hf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def refuse(options: dict[str, Any], reason: str) -> None:
    """Raise an error if an option was given that the command would ignore.

    Args:
        options: Value of each option, by the name of the option; None for an option that was not given.
        reason: Rest of the sentence that begins with the name of the option.

    Raises:
        ValueError: If one of the values is not None.
    """
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} {reason}")


def _options_in_use() -> list[str]:
    """Return the names of the options of the command that is run."""
    commands = typer.main.get_group(app).commands
    words = [word for word in sys.argv[1:] if word in commands]
    parameters = commands[words[0]].params if words else []
    return [each.name for each in parameters if each.param_type_name == "option"]


def _http_error() -> type[Exception]:
    from huggingface_hub.errors import HTTPError

    return HTTPError


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning in one line, without the line of code that it comes from; the signature is that of `warnings`."""
    typer.echo(f"dit-hf: warning: {in_flags(' '.join(str(message).split()), _options_in_use())}", err=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for what torchao logs when PEFT imports it: its kernels, which no command uses, are not loaded."""
    return not record.getMessage().startswith("Skipping import of cpp extensions")


def main() -> None:
    """Run the command line. An error that the user can correct is printed in one line, with exit status 1."""
    logging.getLogger("torchao").addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            app()
    except SystemExit:  # of --help and typing errors: without this clause they would import the error of the next one
        raise
    except (ValueError, OSError, ImportError, FloatingPointError, _http_error()) as error:
        typer.echo(f"dit-hf: {in_flags(' '.join(str(error).split()), _options_in_use())}", err=True)
        sys.exit(1)
