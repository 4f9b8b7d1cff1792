"""Every setting of a training, those of the techniques included, by name."""

from ..setting_row import Row, rows
from ..techniques import TECHNIQUES
from .table import TrainSettings


def all_rows() -> dict[str, Row]:
    """Return the rows of every setting, those of the techniques included, by name."""
    found = dict(rows(TrainSettings))
    for technique, each in TECHNIQUES.items():
        own = rows(each.Settings)
        assert not own.keys() & found.keys(), f"{technique} has a setting of a name that is taken"
        found |= own
    return found


def card_names(settings: TrainSettings | None = None) -> dict[str, str]:
    """Return the settings that a model card shows, by name, and what the card calls each.

    Args:
        settings: Settings of the training, to leave out those that have no effect because of another.
    """
    values = settings.to_dict() if settings else {}
    return {
        name: rules.card
        for name, rules in all_rows().items()
        if rules.card and not (rules.needs in values and values[rules.needs] in rules.idle)
    }
