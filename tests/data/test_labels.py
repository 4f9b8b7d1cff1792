"""Labels in the source and classes of the model."""

import json
import unicodedata
from pathlib import Path

import pytest
from datasets import ClassLabel, Sequence, Value

from dit_hf.data.labels import Classes, read_map, read_names, resolve_classes

ANIMALS = ClassLabel(names=["cat", "dog", "lion", "wolf"])


def test_all_classes_of_a_class_label_by_default():
    classes = resolve_classes(ANIMALS, "label")
    assert classes == Classes(["cat", "dog", "lion", "wolf"], {0: 0, 1: 1, 2: 2, 3: 3}, complete=True)
    assert classes.find(2, "row 0") == 2


def test_chosen_classes_are_numbered_in_their_order_and_others_left_out():
    classes = resolve_classes(ANIMALS, "label", chosen=["wolf", "cat"])
    assert [classes.find(label, "row 0") for label in range(4)] == [1, None, None, 0]


def test_map_makes_a_new_class_set_and_merges():
    mapping = {"cat": "felid", "lion": "felid", "wolf": "canid"}
    classes = resolve_classes(ANIMALS, "label", mapping=mapping)
    assert classes.names == ["felid", "canid"]
    assert [classes.find(label, "row 0") for label in range(4)] == [0, None, 0, 1]
    ordered = resolve_classes(ANIMALS, "label", mapping=mapping, chosen=["canid", "felid", "none yet"])
    assert ordered.names == ["canid", "felid", "none yet"]
    assert [ordered.find(label, "row 0") for label in range(4)] == [1, None, 1, 0]


def test_plain_numbers_are_named_by_the_file_and_texts_chosen_by_it():
    numbers = resolve_classes(Value("int64"), "cls", chosen=["zero", "one"])
    assert (numbers.find(1, "row 0"), numbers.complete) == (1, True)
    texts = resolve_classes(Value("string"), "txt", chosen=["dog", "cat"])
    assert [texts.find(name, "row 0") for name in ("cat", "dog", "lion")] == [1, 0, None]
    mapped = resolve_classes(Value("int32"), "cls", mapping={"7": "seven", "-1": "none"})
    assert [mapped.find(label, "row 0") for label in (7, -1, 0)] == [0, 1, None]


@pytest.mark.parametrize("label", [1003, -1])
def test_label_outside_the_classes_is_an_error_with_its_key(label: int):
    with pytest.raises(ValueError, match=f"label {label} of row 5 of a.parquet is outside the 4 classes"):
        resolve_classes(ANIMALS, "label").find(label, "row 5 of a.parquet")


@pytest.mark.parametrize("label", [None, 1.0, True, [1]])
def test_label_of_no_class_is_an_error_with_its_key(label):
    for chosen in (None, ["cat"]):
        with pytest.raises(ValueError, match="of row 5 of a.parquet is no class"):
            resolve_classes(ANIMALS, "label", chosen=chosen).find(label, "row 5 of a.parquet")


@pytest.mark.parametrize(
    ("feature", "options", "message"),
    [
        (Value("float32"), {}, "column 'label' holds float32: classes are ClassLabel, whole numbers or texts"),
        (Value("bool"), {}, "holds bool"),
        (Sequence(Value("int64")), {}, "column 'label' holds List"),
        (Value("int64"), {}, "holds int64 without names: .*--class_names_file"),
        (Value("string"), {}, "holds string without names"),
        (ANIMALS, {"chosen": ["cat", "cow"]}, "no class 'cow'; its 4 classes begin"),
        (ANIMALS, {"chosen": ["cat", "cat"]}, "'cat' is chosen twice"),
        (Value("int64"), {"chosen": ["a", "a"]}, "'a' is chosen twice"),
        (ANIMALS, {"mapping": {"cow": "x"}}, "no class 'cow'"),
        (ANIMALS, {"mapping": {"cat": "x"}, "chosen": ["y"]}, "leads to 'x', which is not among the classes chosen"),
        (ANIMALS, {"mapping": {"cat": "x", " cat": "y"}}, "the label map has 'cat' twice"),
        (Value("int64"), {"mapping": {"1": "x", "01": "y"}}, "the label map has a number twice"),
        (Value("int64"), {"mapping": {"--1": "x"}}, "the label map has '--1', and the column holds whole numbers"),
        (ClassLabel(names=["cat", "cat "]), {}, "has two classes that read 'cat': merge them with --label_map_file"),
        (Value("int64"), {"mapping": {"cat": "x"}}, "the label map has 'cat', and the column holds whole numbers"),
    ],
)
def test_classes_that_cannot_be_found_are_refused(feature, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        resolve_classes(feature, "label", **options)


NAMES = ["frog, green", "frog, red", "café", 'l\'été "x"', "🐸"]


@pytest.mark.parametrize(
    ("prefix", "end", "form"),
    [(b"", "\n", "NFC"), (b"\xef\xbb\xbf", "\n", "NFC"), (b"", "\r\n", "NFC"), (b"", "\r", "NFC"), (b"", "\n", "NFD")],
)
def test_names_are_read_from_utf_8_however_it_was_written(tmp_path: Path, prefix: bytes, end: str, form: str):
    lines = ["", NAMES[0], "  ", f" {NAMES[1]}\t", NAMES[2], "", NAMES[3], "\u00a0", NAMES[4], "", ""]
    (tmp_path / "names.txt").write_bytes(prefix + unicodedata.normalize(form, end.join(lines)).encode())
    assert read_names(str(tmp_path / "names.txt")) == NAMES


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_an_error_that_names_the_file(tmp_path: Path, encoding: str):
    path = tmp_path / "names.txt"
    path.write_text("café\n", encoding=encoding)
    with pytest.raises(ValueError, match=f"^{path} is (not in UTF-8|in UTF-16 or UTF-32).*: save it in UTF-8"):
        read_names(str(path))
    path.write_text('{"café": "x"}', encoding=encoding)
    with pytest.raises(ValueError, match=f"^{path} is (not in UTF-8|in UTF-16 or UTF-32)"):
        read_map(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("# animals\ncat\n", "the line '# animals', and each line is a name"), ("cat\ncat \n", "holds 'cat' twice")],
)
def test_comments_and_repeated_names_would_shift_the_classes_of_numbers(tmp_path: Path, text: str, message: str):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_names(str(tmp_path / "names.txt"))


def test_missing_file_of_names_is_an_error_that_lists_what_is_there(tmp_path: Path):
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=f"there is no file or folder .*name.txt: {tmp_path} holds names.txt"):
        read_names(str(tmp_path / "name.txt"))
    with pytest.raises(ValueError, match="is a folder: pass a text file"):
        read_map(str(tmp_path))


def test_file_without_names_is_an_error(tmp_path: Path):
    (tmp_path / "names.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="names.txt holds no names"):
        read_names(str(tmp_path / "names.txt"))


def test_names_are_compared_whole_and_in_one_form_of_unicode():
    frogs = ClassLabel(names=["frog, red", "frog", "frog, green", unicodedata.normalize("NFD", "café")])
    classes = resolve_classes(frogs, "label", chosen=["frog, green", "frog, red", "café"])
    assert classes.names == ["frog, green", "frog, red", "café"]
    assert [classes.find(label, "row 0") for label in range(4)] == [1, None, 0, 2]
    assert resolve_classes(frogs, "label").names == ["frog, red", "frog", "frog, green", "café"]
    with pytest.raises(ValueError, match="no class 'frog, blue'.*did you mean 'frog, red' or "):
        resolve_classes(frogs, "label", chosen=["frog, blue"])
    texts = resolve_classes(Value("string"), "txt", chosen=["café", "frog, red"])
    assert texts.find(unicodedata.normalize("NFD", "café"), "row 0") == 0
    assert texts.find("frog", "row 0") is None
    mapped = resolve_classes(frogs, "label", mapping={"café": "place", "frog, red": "animal"})
    assert [mapped.find(label, "row 0") for label in range(4)] == [1, None, None, 0]


def test_files_of_names_and_maps(tmp_path: Path):
    (tmp_path / "names.txt").write_text("tench, Tinca tinca\n\ncrane\n")
    assert read_names(str(tmp_path / "names.txt")) == ["tench, Tinca tinca", "crane"]
    assert read_names(None) is None
    (tmp_path / "map.json").write_text(json.dumps({"a": "b"}))
    assert read_map(str(tmp_path / "map.json")) == {"a": "b"}
    assert read_map(None) is None
    for text, message in [
        ("{", "is no JSON"),
        ("[1]", "is no label map"),
        ("{}", "is no label map"),
        ('{"a": 1}', "no label map"),
        ('{"a": " "}', "no label map"),
        ('{"a": "b", "a ": "c"}', "maps 'a' twice"),
        ('{"a": "b", "a": "c"}', "maps 'a' twice"),
    ]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_map(str(tmp_path / "bad.json"))
