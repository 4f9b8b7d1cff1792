"""Names and ids of classes, and one id for each image of a call."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from sampling_parts import ID2LABEL, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTPipeline


def test_names_synonyms_and_ids_mix():
    pipe = tiny_pipeline(id2label={str(key): value for key, value in ID2LABEL.items()})
    assert pipe.config.id2label == ID2LABEL
    assert pipe.labels == {"Tinca tinca": 0, "bird": 2, "goldfish": 1, "machine": 3, "tench": 0}
    assert pipe.get_label_ids("tench") == [0]
    assert pipe.get_label_ids(["goldfish", "Tinca tinca"]) == [1, 0]
    arguments = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "latent"}
    expected = pipe([0, 1, 7], generator=seeded(0), **arguments).images
    for labels in (["tench", 1, 7], torch.tensor([0, 1, 7]), np.array([0, 1, 7]), ("Tinca tinca", "goldfish", 7)):
        torch.testing.assert_close(pipe(labels, generator=seeded(0), **arguments).images, expected, rtol=0, atol=0)


WORDS = st.text(max_size=3) | st.sampled_from(["crane", "bird", " bird ", "crane, bird", "a,,b", "'", '"', "0"])


PARTS = tiny_pipeline()


@given(id2label=st.dictionaries(st.integers(0, 9), st.lists(WORDS, max_size=3).map(", ".join)), name=WORDS)
def test_any_name_is_found_where_one_class_has_it_and_else_refused(id2label, name):
    index = json.loads(json.dumps(id2label))  # the form that it has in a saved folder
    pipe = DiTPipeline(PARTS.transformer, None, PARTS.scheduler, id2label=index)
    assert pipe.config.id2label == (id2label or None)
    classes = [label_id for label_id, label in id2label.items() if name in map(str.strip, label.split(","))]
    if len(classes) == 1:
        assert pipe.get_label_ids(name) == classes
        assert pipe.labels[name] == classes[0]
        return
    assert name not in pipe.labels
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        pipe.get_label_ids(name)


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
