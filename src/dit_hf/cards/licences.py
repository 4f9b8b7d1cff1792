"""The licence of weights, as a card states it."""

from dataclasses import dataclass

ORIGINAL_LICENSE = "cc-by-nc-4.0"
ORIGINAL_TEXT = (
    "The [original weights](https://github.com/facebookresearch/DiT) are licensed CC-BY-NC 4.0: not for commercial use."
)
BASE_TEXT = " The licence of the base model applies as well."
UNKNOWN = "The author has not stated a licence: ask the author before you use or share the weights."


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Args:
        license: Id of the licence on the Hub, such as "apache-2.0"; None if it is not known.
        license_name: Name of a licence that the Hub does not list; `license` is then "other".
        license_link: Address of the text of such a licence.
        text: Sentence for the page, if the id alone says too little.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    text: str = ""

    def __bool__(self) -> bool:
        return self.license is not None or self.license_name is not None

    @property
    def metadata(self) -> dict[str, str]:
        """Fields for the top of a card."""
        fields = {"license": self.license, "license_name": self.license_name, "license_link": self.license_link}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def section(self) -> str:
        """Markdown for the section of the page."""
        return self.text or (f"`{self.license_name or self.license}`." if self else UNKNOWN)


ORIGINAL = Licence(ORIGINAL_LICENSE, text=ORIGINAL_TEXT)
