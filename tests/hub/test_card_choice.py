"""Which card a pipeline gets when it is pushed: people's own stays, and none speaks of other weights than these."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, constants

from dit_hf import DiTPipeline
from dit_hf.cards.licences import with_licence
from dit_hf.cards.page import CARD
from dit_hf.cards.pipeline import make_card
from dit_hf.cards.results import write_results
from dit_hf.cards.stamp import digest_of_weights, read_stamp, stamped
from dit_hf.finetuning import add_lora
from dit_hf.hub.push import push_folder

RESULT = EvalResult(
    task_type="unconditional-image-generation",
    dataset_type="d",
    dataset_name="ImageNet",
    metric_type="fid",
    metric_name="FID",
    metric_value=2.27,
)
EVALUATION = {"num_images": 10, "extractor": {"name": "inception"}}


@pytest.fixture
def loaded(pipeline, tmp_path) -> DiTPipeline:
    """A pipeline that was loaded from a folder with a generated card, which has results, samples and a licence."""
    folder = tmp_path / "origin"
    pipeline.save_pretrained(folder)
    card = make_card(pipeline, license="cc-by-nc-4.0", recipe={"steps": 7}, results=[RESULT], has_samples=True)
    (folder / CARD).write_text(stamped(str(card), digest_of_weights(folder)))
    (folder / "samples.png").write_bytes(b"picture")
    (folder / "samples").mkdir()
    (folder / "samples" / "00.png").write_bytes(b"one")
    return DiTPipeline.from_pretrained(folder)


def change(pipeline: DiTPipeline) -> DiTPipeline:
    with torch.no_grad():
        pipeline.transformer.final_layer.linear.bias += 1
    return pipeline


def card_on(hub, tmp_path: Path, name: str = "user/dit") -> ModelCard:
    (tmp_path / "published.md").write_bytes(hub.repository(name).files()[CARD])
    return ModelCard.load(tmp_path / "published.md")


def put_on(hub, text: str, name: str = "user/dit") -> None:
    files = hub.repository(name).refs["main"].files
    files[CARD] = type(files[CARD])(text.encode(), lfs=False)


def test_card_of_the_folder_goes_along_with_its_weights(hub, loaded, tmp_path):
    loaded.push_to_hub("user/dit")
    card, files = card_on(hub, tmp_path), hub.repository("user/dit").files()
    assert "| steps | 7 |" in card.text
    assert card.data.eval_results[0].metric_value == 2.27
    assert files["samples.png"] == b"picture"
    assert files["samples/00.png"] == b"one"
    stamp = read_stamp(str(card.content))
    assert not stamp.is_edited  # what the snippets load is the repository's id now, and that is no edit


def test_card_of_the_folder_does_not_go_along_with_other_weights(hub, loaded, tmp_path):
    change(loaded).push_to_hub("user/dit")
    card, files = card_on(hub, tmp_path), hub.repository("user/dit").files()
    assert "| steps | 7 |" not in card.text
    assert card.data.eval_results is None
    assert "samples.png" not in files
    assert card.data.license == "cc-by-nc-4.0"  # what is made from weights is bound by their licence


def test_generated_card_on_the_hub_is_made_again_when_the_weights_have_changed(hub, loaded, tmp_path):
    loaded.push_to_hub("user/dit")
    (tmp_path / CARD).write_text(card_on(hub, tmp_path).content)
    write_results(tmp_path / CARD, {"sfid": 4.6}, {}, EVALUATION)  # by dit-hf evaluate --card: no edit of people
    put_on(hub, (tmp_path / CARD).read_text())
    loaded.push_to_hub("user/dit")
    assert card_on(hub, tmp_path).data.eval_results[0].metric_value == 4.6
    change(loaded).push_to_hub("user/dit")
    assert card_on(hub, tmp_path).data.eval_results is None
    assert read_stamp(card_on(hub, tmp_path).content).weights != digest_of_weights(tmp_path / "origin")


def test_card_that_people_edited_stays_and_a_warning_says_that_the_weights_are_others(hub, loaded, tmp_path, caplog):
    loaded.push_to_hub("user/dit")
    edited = card_on(hub, tmp_path).content.replace(
        "## Limits and bias", "## My thoughts\n\nNice.\n\n## Limits and bias"
    )
    put_on(hub, edited)
    loaded.push_to_hub("user/dit")
    assert "was edited" not in caplog.text
    change(loaded).push_to_hub("user/dit")
    assert card_on(hub, tmp_path).content == edited
    assert "README.md of user/dit was edited, so it stays, but it is of other weights" in caplog.text


def test_digest_is_of_the_weights_and_not_of_their_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "one")
    pipeline.transformer.save_pretrained(tmp_path / "shards" / "transformer", max_shard_size="20KB")
    assert len(list((tmp_path / "shards" / "transformer").glob("*.safetensors"))) > 1
    assert digest_of_weights(tmp_path / "one") == digest_of_weights(tmp_path / "shards")
    change(copy.deepcopy(pipeline)).save_pretrained(tmp_path / "changed")
    assert digest_of_weights(tmp_path / "changed") != digest_of_weights(tmp_path / "one")


def test_licence_of_a_push_is_that_of_its_argument(hub, pipeline, loaded, tmp_path):
    pipeline.push_to_hub("user/new", license="apache-2.0")
    card = card_on(hub, tmp_path, "user/new")
    assert card.data.license == "apache-2.0"
    assert "## Licence\n\n`apache-2.0`." in card.text
    loaded.push_to_hub("user/dit", license="mit")  # its folder's card says cc-by-nc-4.0
    card = card_on(hub, tmp_path)
    assert (card.data.license, "`mit`." in card.text, "cc-by-nc-4.0" in card.content) == ("mit", True, False)
    assert not read_stamp(card.content).is_edited
    put_on(hub, "---\nlicense: other\nlicense_name: mine\n---\n# Mine\n\nNice.\n")
    loaded.push_to_hub("user/dit", license="mit")
    card = card_on(hub, tmp_path)
    assert card.data.to_dict() == {"license": "mit"}
    assert card.text.strip() == "# Mine\n\nNice."
    loaded.push_to_hub("user/dit")  # without the argument nothing changes
    assert card_on(hub, tmp_path).data.license == "mit"


def test_wrong_licence_of_a_push_is_refused_before_anything_is_asked_or_sent(hub, pipeline):
    with pytest.raises(ValueError, match="did you mean 'apache-2.0'"):
        pipeline.push_to_hub("user/dit", license="Apache 2.0")
    assert hub.log == []


def test_licence_section_alone_is_replaced(pipeline):
    card = str(make_card(pipeline, license="mit", base_model="user/base"))
    other = with_licence(card, "apache-2.0")
    assert other.replace("apache-2.0", "mit").split() == card.split()
    assert "`apache-2.0`. The licence of the base model applies as well." in other


@pytest.mark.parametrize(("license", "name"), [("mit", None), ("other", "mine")])
def test_model_made_from_one_on_the_hub_names_it_with_its_licence(hub, saved, tmp_path, license, name):
    named = f"license: {license}\n" + (f"license_name: {name}\nlicense_link: LICENSE\n" if name else "")
    (saved / CARD).write_text(f"---\n{named}---\n# Base\n")
    push_folder(saved, "user/base")
    pipeline = change(DiTPipeline.from_pretrained("user/base", cache_dir=constants.HF_HUB_CACHE))
    pipeline.push_to_hub("user/tuned")
    card = card_on(hub, tmp_path, "user/tuned")
    assert (card.data.base_model, card.data["base_model_relation"]) == ("user/base", "finetune")
    assert (card.data.license, card.data.get("license_name")) == (license, name)
    assert "made from [user/base](https://huggingface.co/user/base)" in card.text
    put_on(hub, stamped("---\nlicense: mit\n---\n# Old\n", "0" * 64), "user/base")
    pipeline.push_to_hub("user/base")
    assert card_on(hub, tmp_path, "user/base").data.get("base_model") is None  # no model is made from itself


def test_model_loaded_from_a_folder_that_is_gone_names_no_base(hub, pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("jane/dit")
    loaded = DiTPipeline.from_pretrained("jane/dit")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded.push_to_hub("user/dit")
    card = card_on(hub, tmp_path)
    assert card.data.get("base_model") is None
    assert "jane" not in card.content


def test_parameters_are_those_of_the_model_without_an_adapter(pipeline):
    expected = f"| parameters | {sum(p.numel() for p in pipeline.transformer.parameters()):,} |"
    assert expected in make_card(pipeline).text
    adapted = copy.deepcopy(pipeline)
    add_lora(adapted.transformer, 4)
    assert sum(p.numel() for p in adapted.transformer.parameters()) > sum(
        p.numel() for p in pipeline.transformer.parameters()
    )
    assert expected in make_card(adapted).text
