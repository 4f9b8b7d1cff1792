"""Names and ids of classes, and one id for each image of a call."""

import json
import re
import unicodedata

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from sampling_parts import ID2LABEL, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTPipeline
from dit_hf.class_names import names_to_ids
from dit_hf.conversion.imagenet_names import imagenet_names
from dit_hf.sampling.class_names import class_ids, labels_of_text
from dit_hf.synonyms import IMAGENET_CHECKSUMS, checksum, lists_synonyms


def test_names_synonyms_and_ids_mix():
    pipe = tiny_pipeline(id2label={str(key): value for key, value in ID2LABEL.items()})
    assert pipe.config.id2label == ID2LABEL
    assert pipe.labels == {"Tinca tinca": 0, "garter snake": 3, "goldfish": 1, "green snake": 2, "tench": 0}
    assert pipe.get_label_ids("tench") == [0]
    assert pipe.get_label_ids(["goldfish", "Tinca tinca"]) == [1, 0]
    arguments = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "latent"}
    expected = pipe([0, 1, 7], generator=seeded(0), **arguments).images
    for labels in (["tench", 1, 7], torch.tensor([0, 1, 7]), np.array([0, 1, 7]), ("Tinca tinca", "goldfish", 7)):
        torch.testing.assert_close(pipe(labels, generator=seeded(0), **arguments).images, expected, rtol=0, atol=0)


WORDS = st.text(max_size=3) | st.sampled_from(
    ["tench", "Tinca tinca", "tench,Tinca tinca", " tench ", "tench, Tinca tinca", "a,,b", "'", '"', "0", "e\u0301"]
)
PARTS = tiny_pipeline()


def compared(name: str) -> list[str]:
    """The parts of a name, without the spaces around the commas between them, accents in one piece."""
    parts = unicodedata.normalize("NFC", name).split(",")
    inner = [part.strip() for part in parts]
    return [parts[0].rstrip(), *inner[1:-1], parts[-1].lstrip()] if len(parts) > 1 else parts


@given(id2label=st.dictionaries(st.integers(0, 9), st.lists(WORDS, max_size=3).map(", ".join)), name=WORDS)
def test_any_name_is_found_where_one_class_has_it_and_else_refused(id2label, name):
    index = json.loads(json.dumps(id2label))  # the form that it has in a saved folder
    pipe = DiTPipeline(PARTS.transformer, None, PARTS.scheduler, id2label=index)
    assert pipe.config.id2label == (id2label or None)
    whole = [class_id for class_id, label in id2label.items() if compared(name) == compared(label.strip())]
    fishes = [
        class_id for class_id, label in id2label.items() if compared(label.strip()) == compared("tench, Tinca tinca")
    ]
    listed = fishes if name in ("tench", "Tinca tinca") else []
    classes = whole or listed
    if len(classes) == 1:
        assert pipe.get_label_ids(name) == classes
        if listed or "," not in name:
            assert pipe.labels[unicodedata.normalize("NFC", name)] == classes[0]
        return
    assert unicodedata.normalize("NFC", name) not in pipe.labels
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        pipe.get_label_ids(name)


def named(*labels: str) -> DiTPipeline:
    return DiTPipeline(PARTS.transformer, None, PARTS.scheduler, id2label=dict(enumerate(labels)))


def test_whole_label_comes_before_synonyms():
    pipe = named("green snake, grass snake", "garter snake, grass snake", "tiger, Panthera tigris", "tiger")
    names = ["green snake, grass snake", "garter snake,grass snake", "garter snake", "tiger", "Panthera tigris"]
    assert pipe.get_label_ids(names) == [0, 1, 1, 3, 2]
    message = r"'grass snake' names the classes 0, 1.*\(0 'green snake, grass snake', 1 'garter snake, grass snake'\)"
    with pytest.raises(ValueError, match=message):
        pipe.get_label_ids("grass snake")
    assert "grass snake" not in pipe.labels


def test_comma_in_a_label_that_is_not_one_of_imagenet_divides_nothing():
    pipe = named("frog, green", "frog, red", "beach, summer", "tench, Tinca tinca")
    assert pipe.get_label_ids(["frog, green", "frog,red", "beach, summer", "tench"]) == [0, 1, 2, 3]
    assert set(pipe.labels) == {"frog, green", "frog, red", "beach, summer", "tench", "Tinca tinca"}
    for part in ("summer", "beach", "frog", "green"):
        with pytest.raises(ValueError, match=f"no class is named '{part}': did you mean"):
            pipe.get_label_ids(part)


def test_labels_that_list_synonyms_are_the_labels_of_imagenet_with_a_comma():
    labels = imagenet_names().values()
    assert [label for label in labels if lists_synonyms(label)] == [label for label in labels if "," in label]
    assert {checksum(label) for label in labels if "," in label} == IMAGENET_CHECKSUMS
    assert not any(map(lists_synonyms, ["beach, summer", "frog, green", "crane, bird", "Tinca tinca, tench", "tench"]))


@pytest.mark.parametrize(("stored", "asked"), [("cafe\u0301", "caf\xe9"), ("caf\xe9", "cafe\u0301")])
def test_accents_are_one_character_or_two(stored: str, asked: str):
    pipe = named("tea", stored)
    assert pipe.get_label_ids(asked) == [1]
    assert pipe.labels["caf\xe9"] == 1


def test_numbers_that_are_names_of_other_classes_are_told(caplog):
    diffusers.utils.logging.enable_propagation()
    labels = {0: "0", 1: "1", 2: "10", 3: "2"}
    config = tiny_model(num_classes=4).config
    assert class_ids(["10", "2", 0, 1], config, labels) == [2, 3, 0, 1]
    assert not caplog.text
    assert class_ids(np.array([2]), config, labels) == [2]
    assert "the id 2 is the class '10'; for the class named '2', whose id is 3, pass the text '2'" in caplog.text
    with pytest.raises(ValueError, match="no class is named '3': .* For the id 3, pass a number, not a text"):
        class_ids("3", config, labels)


def test_close_names_are_found_in_any_case():
    with pytest.raises(ValueError, match="no class is named ' PANDA FACE': did you mean 'Panda face'"):
        named("Panda face", "fox").get_label_ids(" PANDA FACE")


TYPED = {
    "ids": ("3, 7", [], [3, 7]),
    "names": (" panda face ,fox,", ["fox", "panda face"], ["panda face", "fox"]),
    "both": ("1, fox", ["fox", "panda face"], [1, "fox"]),
    "names that are digits": ("10, 2, 3", ["0", "1", "10", "2"], ["10", "2", 3]),
    "a name with commas": ("1, beach, summer,1", ["beach, summer", "sea"], [1, "beach, summer", 1]),
    "the longest name": ("a, b, c", ["a, b", "a, b, c", "c"], ["a, b, c"]),
    "accents in two characters": ("cafe\u0301, tea", ["caf\xe9, tea"], ["caf\xe9, tea"]),
    "nothing": (" , ", [], []),
}


@pytest.mark.parametrize(("text", "labels", "expected"), TYPED.values(), ids=TYPED)
def test_typed_labels_are_names_before_ids(text: str, labels: list[str], expected: list):
    assert labels_of_text(text, names_to_ids(dict(enumerate(labels)))) == expected


def test_id_of_the_null_class_draws_an_image_of_no_class(caplog):
    diffusers.utils.logging.enable_propagation()
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    arguments = {"num_inference_steps": 4, "latents": latents, "output_type": "latent"}
    found = pipe(10, guidance_scale=1, **arguments).images
    assert "class 10 is the null class" in caplog.text
    x = latents
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipe.transformer(x, t, torch.tensor([10])).sample[:, :4], t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(pipe(10, guidance_scale=3, **arguments).images, x, rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match=r"10 is outside 0\.\.9$"):
        tiny_pipeline(tiny_model(class_dropout_prob=0.0))(10, guidance_scale=1)


def test_images_of_one_label_stand_next_to_each_other():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0)).expand(4, 4, 8, 8)
    arguments = {"guidance_scale": 1, "num_inference_steps": 3, "output_type": "latent"}
    images = pipe([7, 2], num_images_per_label=2, latents=latents, **arguments).images
    alone = pipe(2, latents=latents[:1], **arguments).images
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0)
    torch.testing.assert_close(images[2:], alone.expand(2, 4, 8, 8), rtol=1e-5, atol=1e-4)
    assert (images[0] - images[2]).abs().max() > 1e-2


def test_unconditional_model_takes_a_number_of_images():
    pipe = tiny_pipeline(tiny_model(num_classes=0))
    assert pipe(num_images=3, guidance_scale=1, num_inference_steps=1, output_type="latent").images.shape[0] == 3
    with pytest.raises(ValueError, match="unconditional, pass num_images"):
        pipe([1], guidance_scale=1)
    with pytest.raises(ValueError, match="guidance_scale=1"):
        pipe(num_images=1)
