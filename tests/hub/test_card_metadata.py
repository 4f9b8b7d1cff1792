"""Metadata that the Hub would refuse is refused here first, before a training begins or a file is sent."""

import io

import pytest
from huggingface_hub import ModelCard

from dit_hf.cards.metadata import LICENSES, check_license, hub_id
from dit_hf.cards.pipeline import make_card
from dit_hf.cards.training import TrainingCard
from dit_hf.hub.background import BackgroundPush
from dit_hf.hub.card import check_card
from dit_hf.hub.push import push_folder
from dit_hf.training.run import run
from dit_hf.training.settings import TrainSettings, card_names

SETTINGS = {"dataset_name": "user/images", "dataset_split": "train", "vae_name_or_path": "user/vae"}


@pytest.mark.parametrize(
    ("license", "closest"),
    [("Apache 2.0", "apache-2.0"), ("MIT", "mit"), ("CC BY-NC 4.0", "cc-by-nc-4.0"), ("GPL 3.0", "gpl-3.0")],
)
def test_licence_that_the_hub_does_not_know_is_refused_with_the_closest_one(license, closest):
    with pytest.raises(ValueError, match=f"license='{license}' is not an id of the Hub: did you mean '{closest}'"):
        check_license(license)


def test_licence_like_no_other_is_pointed_to_the_list():
    with pytest.raises(ValueError, match=r"'do as I say' is not an id of the Hub: The ids are listed at .*'other'"):
        check_license("do as I say")
    for license in (None, "apache-2.0", "cc-by-nc-4.0", "other", "openrail++", "llama3.1"):
        check_license(license)
    assert all(license == license.strip().lower() for license in LICENSES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/images", "user/images"),
        ("ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k"),
        ("hf://datasets/user/images/data/*.parquet", "user/images"),
        ("hf://datasets/user/images@main/data/*.parquet", "user/images"),
        ("shards/*.parquet", None),
        ("shards/{00..10}.tar", None),
        ("user/x@main", None),
        ("photos/cats and dogs", None),
        ("./user/images", None),
        ("/home/jane/images", None),
        ("~/images", None),
        ("a/b/c", None),
        ("C:\\images\\cats", None),
        ("https://example.com/a.tar", None),
        ("imagefolder", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_repository_is_named_as_one(name, expected):
    assert hub_id(name) == expected


def test_folder_of_this_machine_is_no_repository_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("a/b") == "a/b"
    card = TrainingCard(tmp_path, {**SETTINGS, "dataset_name": "a/b"}, {})
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert hub_id("a/b") is None
    assert card.outline().data.datasets == ["a/b"]
    local = TrainingCard(tmp_path, {**SETTINGS, "dataset_name": "a/b", "init_from": "a/b"}, {})
    local.read_settings({**SETTINGS, "init_from": "user/base"})  # as a fine-tuning fills its settings in
    assert (local.outline().data.datasets, local.outline().data.base_model) == (["user/images"], "user/base")
    local.read_settings({**SETTINGS, "dataset_name": "a/b", "init_from": "a/b"})
    monkeypatch.chdir("/")  # where the card is written
    assert local.outline().data.datasets is None
    assert local.outline().data.base_model is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"license": "Apache 2.0"}, "did you mean 'apache-2.0'"),
        ({"datasets": ["shards/*.parquet"]}, r"datasets='shards/\*.parquet' is no repository of the Hub"),
        ({"base_model": "user/x@main"}, "base_model='user/x@main' is no repository of the Hub: write user/name"),
    ],
)
def test_card_that_the_hub_would_refuse_is_not_made(fields, message, pipeline):
    with pytest.raises(ValueError, match=message):
        make_card(pipeline, **fields)


@pytest.mark.parametrize("name", ["shards/*.parquet", "user/x@main", "out/pipeline/checkpoint"])
def test_card_of_a_training_leaves_out_names_that_are_no_repositories(name, pipeline, tmp_path):
    settings = {**SETTINGS, "dataset_name": name, "init_from": name, "vae_name_or_path": name}
    card = TrainingCard(tmp_path, settings, {}).make(pipeline)
    assert card.data.datasets is None
    assert card.data.base_model is None
    assert name not in str(card)


def test_wrong_licence_ends_a_training_before_it_looks_for_its_data(tmp_path):
    settings = TrainSettings(output_dir=str(tmp_path / "out"), dataset_name="none/such", hub_license="Apache 2.0")
    with pytest.raises(ValueError, match="license='Apache 2.0' is not an id of the Hub: did you mean 'apache-2.0'"):
        run(settings)


class Refused(TrainingCard):
    """A card whose metadata the Hub refuses although nothing here knows better."""

    def outline(self) -> ModelCard:
        return ModelCard("---\nlicense: A new one\n---\n")


def test_hub_is_asked_for_the_card_before_the_first_step(hub, tmp_path):
    with pytest.raises(ValueError) as error:
        BackgroundPush("user/dit", Refused(tmp_path, SETTINGS, {}))
    assert 'README.md for user/dit is refused: ValueError: "license" must be one of' in str(error.value)
    assert "\n" not in str(error.value)
    BackgroundPush("user/dit", TrainingCard(tmp_path, {**SETTINGS, "hub_license": "mit"}, card_names()))
    assert hub.count("POST", "validate-yaml") == 2


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("license: Apache 2.0", "is refused: .*license"),
        ("datasets:\n- shards/*.parquet", "is refused: .*datasets"),
        ("license: [mit", "is refused: .*flow sequence"),
    ],
)
def test_card_that_people_edited_wrongly_is_refused_before_anything_is_sent(hub, saved, front, message):
    (saved / "README.md").write_text(f"---\n{front}\n---\n# Mine\n")
    with pytest.raises(ValueError, match=message) as error:
        push_folder(saved, "user/dit")
    assert "\n" not in str(error.value)
    assert hub.count("PUT", "/lfs/") == hub.count("POST", "/commit/") == 0


def test_asking_for_the_card_is_tried_again(hub):
    hub.fail("POST", "validate-yaml", 503, times=2, headers={"Retry-After": "0"})
    check_card("---\nlicense: mit\n---\n", "user/dit")
    assert hub.count("POST", "validate-yaml") == 3


def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


def test_gallery_shows_each_sample_with_its_class(hub, pipeline, saved, tmp_path):
    from PIL import Image

    output = tmp_path / "out"
    output.mkdir()
    (output / "samples.png").write_bytes(png())
    card = TrainingCard(output, SETTINGS, {})
    card.write(pipeline, saved)
    assert ModelCard.load(saved / "README.md").data.widget == [{"text": "4 classes", "output": {"url": "samples.png"}}]
    card.add_samples([Image.new("RGB", (4, 4)) for _ in range(3)], ["goldfish", "crane, bird", "Ω 🐟"])
    card.write(pipeline, saved)
    push_folder(saved, "user/dit")
    files = hub.repository("user/dit").files()
    (tmp_path / "README.md").write_bytes(files["README.md"])
    pushed = ModelCard.load(tmp_path / "README.md")
    assert [entry["text"] for entry in pushed.data.widget] == ["goldfish", "crane, bird", "Ω 🐟"]
    assert all(entry["output"]["url"] in files for entry in pushed.data.widget)
    assert "<Gallery />" in pushed.text  # where the Hub shows them
    unconditional = TrainingCard(output, SETTINGS, {})
    unconditional.add_samples([Image.new("RGB", (4, 4))] * 2, [])
    assert len(unconditional.make(pipeline).data.widget) == 2
