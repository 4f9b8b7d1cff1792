"""The application that the commands are added to, and `main`, which runs it.

A command imports torch and the other rooms when it runs: the help and the errors of the command line come without them.
"""

import sys
from typing import Annotated, Any, Literal

import typer

from .. import __version__, register_auto_classes

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


def _http_error() -> type[Exception]:
    from huggingface_hub.errors import HTTPError

    return HTTPError


def main() -> None:
    """Run the command line. An error that the user can correct is printed in one line, with exit status 1."""
    try:
        app()
    except SystemExit:  # of --help and typing errors: without this clause they would import the error of the next one
        raise
    except (ValueError, OSError, ImportError, FloatingPointError, _http_error()) as error:
        typer.echo(f"dit-hf: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
