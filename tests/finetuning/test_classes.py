"""Which row of the label table a class gets, and what that does to the model's answers."""

import pytest
import torch

from dit_hf.finetuning import carry_classes, match_classes

KNOWN = {0: "tench, Tinca tinca", 1: "crane", 2: "goldfish", 3: "crane"}


def test_classes_match_by_whole_label_and_by_a_synonym_of_a_known_one():
    names = ["goldfish", "Tinca tinca", "koi, goldfish", "my cat"]
    assert match_classes(KNOWN, names) == [2, 0, None, None]
    assert match_classes(KNOWN, ["tench, Tinca tinca"]) == [0]


def test_a_comma_in_a_name_of_the_data_divides_nothing():
    assert match_classes({0: "frog", 1: "panda"}, ["frog, green", "frog, red", "frog"]) == [None, None, 0]


def test_a_part_that_known_labels_share_is_no_synonym():
    known = {0: "green snake, grass snake", 1: "garter snake, grass snake"}
    assert match_classes(known, ["grass snake", "garter snake"]) == [None, 1]


def test_a_comma_in_a_known_label_that_is_not_one_of_imagenet_divides_nothing():
    known = {0: "frog, green", 1: "beach, summer", 2: "tench, Tinca tinca"}
    names = ["frog", "summer", "beach", "tench", "frog, green"]
    assert match_classes(known, names) == [None, None, None, 2, 0]
    assert match_classes(known, ["beach, summer"]) == [1]


def test_two_classes_never_continue_the_same_one(caplog):
    assert match_classes(KNOWN, ["Tinca tinca", "tench", "goldfish"]) == [0, None, 2]
    assert "class 'tench' starts anew: another class of the data continues 'tench, Tinca tinca'" in caplog.text
    assert match_classes(KNOWN, ["tench", "tench, Tinca tinca"]) == [None, 0]  # a whole label goes first


def test_two_spellings_of_one_name_are_two_classes(caplog):
    assert match_classes({0: "beach, summer", 1: "tea"}, ["beach,summer", "beach , summer"]) == [0, None]
    assert "class 'beach , summer' starts anew" in caplog.text


def test_a_class_that_continues_a_synonym_is_named_in_the_log(caplog):
    caplog.set_level("INFO", "dit_hf.finetuning")
    assert match_classes(KNOWN, ["tench", "goldfish"]) == [0, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "class 'tench' continues 'tench, Tinca tinca', which lists this name"
    ]


def test_letters_are_the_same_however_they_are_stored():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert match_classes({0: composed, 1: "tea"}, [decomposed]) == [0]
    assert match_classes({0: decomposed, 1: "tea"}, [composed]) == [0]


def test_a_label_that_two_classes_have_keeps_its_place_and_is_refused_elsewhere():
    assert match_classes(KNOWN, list(KNOWN.values())) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="class 'crane' fits the known classes 1, 3: use a longer name"):
        match_classes(KNOWN, ["crane"])


def test_known_classes_keep_their_answers_and_new_ones_start_at_the_mean(build):
    model, before = build(), build()
    carry_classes(model, [2, None, 0])
    table = before.y_embedder.embedding_table.weight
    expected = torch.stack([table[2], (table[0] + table[1] + table[2] + table[3]) / 4, table[0], table[4]])
    torch.testing.assert_close(model.y_embedder.embedding_table.weight, expected)
    assert (model.config.num_classes, model.config.null_class_id) == (3, 3)
    x = torch.randn(3, 4, 8, 8)
    new, old = (m(x, 500, torch.tensor(ids)).sample for m, ids in ((model, [0, 2, 3]), (before, [2, 0, 4])))
    torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_a_model_without_a_null_class_gets_none(build):
    model = build(class_dropout_prob=0.0)
    carry_classes(model, [None, 3])
    assert model.y_embedder.embedding_table.weight.shape == (2, 32)


def test_precision_and_training_mode_stay(build):
    model = build().to(torch.bfloat16).train()
    carry_classes(model, [0])
    assert model.y_embedder.embedding_table.weight.dtype == torch.bfloat16
    assert model.y_embedder.training


@pytest.mark.parametrize(
    ("fields", "origins", "message"),
    [
        ({"num_classes": 0}, [None], "num_classes=0: an unconditional model has no label table"),
        ({}, [], "the new set has no classes"),
        ({}, [4], r"class 4 cannot be carried over: the model has 0\.\.3"),
        ({}, [-1], r"class -1 cannot be carried over"),
    ],
)
def test_what_cannot_be_carried_is_refused(build, fields: dict, origins: list, message: str):
    with pytest.raises(ValueError, match=message):
        carry_classes(build(**fields), origins)
