"""One setting, one row: its default, its help and the rules that it obeys stand where it is declared.

    learning_rate: float = row(1e-4, "Learning rate of AdamW.", at_least=0.0, card="learning rate")

The settings of a training and those of each technique are dataclasses of such rows. Parsing, the comparison on resume
and model cards read the rows, so that a new setting is written down once.
"""

import dataclasses
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

MayChange = Literal["never", "always", "with a constant learning rate", "with equal images per step"]


@dataclass(frozen=True)
class Row:
    """The rules of one setting.

    Args:
        default: Value if the user sets none.
        from_origin: Whether the model of `init_from`, if one is given, decides the value instead of the default.
        at_least: Lowest value.
        below: Number that the value must stay below.
        needs: Name of the setting without which this one has no effect.
        idle: Values of `needs` with which this setting has no effect.
        may_change: When the value may differ as a run resumes from a checkpoint. A value that changes what a step
            computes may "never" change.
        card: Name of the setting on a model card; None for one that no card shows.
    """

    default: Any
    from_origin: bool = False
    at_least: float | None = None
    below: float | None = None
    needs: str | None = None
    idle: tuple[Any, ...] = (None, False)
    may_change: MayChange = "never"
    card: str | None = None


def row(default: Any, help: str, *, from_origin: bool = False, **rules: Any) -> Any:
    """Return the dataclass field of a setting.

    Args:
        default: Value if the user sets none.
        help: Description for `--help`, which begins with its noun.
        from_origin: Whether the field starts as None, because `init_from` may decide the value.
        **rules: Other arguments of `Row`.
    """
    if from_origin and default is not None:
        help += f" Default: that of init_from, or {default}."
    facts = Row(default, from_origin, **rules)
    return dataclasses.field(default=None if from_origin else default, metadata={"help": help, "row": facts})


def rows(settings: Any) -> dict[str, Row]:
    """Return the rows of a dataclass of settings, or of one of its instances, by name."""
    return {field.name: field.metadata["row"] for field in dataclasses.fields(settings) if "row" in field.metadata}


def check(settings: Any) -> None:
    """Check each value against its row.

    Raises:
        ValueError: If a value has another type than its annotation, lies outside its limits, or has no effect because
            of another setting.
    """
    hints = get_type_hints(type(settings))
    for name, rules in rows(settings).items():
        value = getattr(settings, name)
        if value is not None:
            _check_value(name, value, hints[name], rules)
        if rules.needs and value != getattr(type(settings), name):
            _check_effect(name, value, rules, getattr(settings, rules.needs))


def _check_value(name: str, value: Any, hint: Any, rules: Row) -> None:
    is_number = type(value) in (int, float)
    is_low = rules.at_least is not None and is_number and not value >= rules.at_least
    is_high = rules.below is not None and is_number and not value < rules.below
    if is_low or is_high or not _fits(value, hint):
        limits = [f"of at least {rules.at_least:g}"] if rules.at_least is not None else []
        limits += [f"below {rules.below:g}"] if rules.below is not None else []
        wanted = " ".join([_describe(hint), " and ".join(limits)]).strip()
        raise ValueError(f"{name}={value!r} is not possible: set it to {wanted}")


def _check_effect(name: str, value: Any, rules: Row, needed: Any) -> None:
    if needed in rules.idle:
        state = (
            f"without {rules.needs}: set that too"
            if needed is None or needed is False
            else (f"with {rules.needs}={needed!r}: set {rules.needs} to something else")
        )
        raise ValueError(f"{name}={value!r} has no effect {state}, or leave {name} out")


def _options(hint: Any) -> list[Any]:
    """Return the alternatives of a type, without None: `float | None` has one."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [each for each in alternatives if each is not type(None)]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type. An int is a float too, but True is no number."""
    for each in _options(hint):
        if get_origin(each) is Literal:
            fits = value in get_args(each)
        elif get_origin(each) is list:
            fits = isinstance(value, list) and all(_fits(item, get_args(each)[0]) for item in value)
        else:
            fits = type(value) is each or (each is float and type(value) is int)
        if fits:
            return True
    return False


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _describe(hint: Any) -> str:
    (first, *_) = _options(hint)
    if get_origin(first) is Literal:
        return f"one of {', '.join(map(str, get_args(first)))}"
    if get_origin(first) is list:
        return f"a list, each of whose values is {NAMES[get_args(first)[0]]}"
    return NAMES[first]
