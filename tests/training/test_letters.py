"""Names below previews, whose letters the font must have: Pillow draws a box for one that it has not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dit_hf.training.reporting import letters
from dit_hf.training.reporting.letters import written


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_installed", lambda: ())


def drawn(text: str, font: object) -> np.ndarray:
    image = Image.new("L", (100, 20), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black", font=font)
    return np.asarray(image)


@pytest.mark.parametrize("name", ["café", "кошка", "γάτα", "kedi ığü", "חתול"])
def test_alphabets_are_drawn_as_they_are_and_not_as_boxes(bare_machine: None, name: str):
    text, font = written(name, 12)
    assert text == name
    for letter in name.replace(" ", ""):
        assert not np.array_equal(drawn(letter, font), drawn("\U0010ffff", font)), letter  # nobody has the last


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("🐸", "frog face"),
        ("green 🐸!", "green frog face !"),
        ("👩\u200d🚀", "woman rocket"),
        ("猫", "U+732B"),
        ("cat 猫", "cat U+732B"),
        ("\ue000", "U+E000"),
        ("frog", "frog"),
        ("", ""),
    ],
)
def test_letter_of_no_font_is_called_by_its_name_or_its_number(bare_machine: None, name: str, expected: str):
    assert written(name, 12)[0] == expected


def test_font_of_the_machine_is_taken_if_it_has_the_letters(monkeypatch: pytest.MonkeyPatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    other = letters._bundled().replace("DejaVuSans.ttf", "DejaVuSerif.ttf")
    monkeypatch.setattr(letters, "_installed", lambda: (str(tmp_path / "broken.ttf"), other))
    monkeypatch.setattr(letters, "_bundled", lambda: other.replace("DejaVuSerif.ttf", "cmex10.ttf"))  # has no letters
    text, font = written("кошка", 12)
    assert (text, font.path) == ("кошка", other)
