"""Model cards: what they say, that the Hub takes them, and that their snippets run as printed."""

import re

import numpy as np
import pytest
from fresh_process import run_script
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.analysis import count_gmacs
from dit_hf.cards.pipeline import make_card
from dit_hf.cards.training import TrainingCard
from dit_hf.hub.push import push_folder
from dit_hf.training.settings import TrainSettings, card_names

RESULT = EvalResult(
    task_type="unconditional-image-generation",
    dataset_type="ILSVRC/imagenet-1k",
    dataset_name="ImageNet 256x256",
    metric_type="fid",
    metric_name="FID",
    metric_value=2.27,
    metric_args={
        "guidance_scale": 1.5,
        "guidance_channels": "first_three",
        "sampler": "DDPM",
        "steps": 250,
        "n": 50000,
    },
)


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_hub_takes_the_card_and_reads_its_metadata(hub, pipeline, tmp_path):
    card = make_card(
        pipeline,
        model_id="user/dit",
        license="cc-by-nc-4.0",
        datasets=["ILSVRC/imagenet-1k"],
        base_model="facebook/DiT-XL-2-256",
        recipe={"steps": 400_000},
        results=[RESULT],
        has_samples=True,
        has_loss_curve=True,
    )
    card.validate()
    assert hub.count("POST", "validate-yaml") == 1
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.license == "cc-by-nc-4.0"
    assert data.datasets == ["ILSVRC/imagenet-1k"]
    assert data.base_model == "facebook/DiT-XL-2-256"
    assert "class-conditional-image-generation" in data.tags
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.metric_args) == ("fid", 2.27, RESULT.metric_args)


def test_page_tells_what_a_reader_needs(pipeline):
    text = make_card(
        pipeline, model_id="user/dit", datasets=["ILSVRC/imagenet-1k"], recipe={"steps": 7}, results=[RESULT],
        has_samples=True, has_loss_curve=True,
    ).text  # fmt: skip
    assert "![samples of the model](samples.png)" in text
    assert "![the training loss](loss.png)" in text
    assert f"| parameters | {pipeline.transformer.num_parameters():,} |" in text
    assert f"| multiply-adds of a forward | {count_gmacs(pipeline.transformer.config):.2f} * 10^9 |" in text
    assert "| steps | 7 |" in text
    assert "| FID | 2.27 | ImageNet 256x256 | guidance_scale 1.5, guidance_channels first_three, sampler DDPM" in text
    assert "its terms allow research only" in text
    assert "The author has not stated a licence: ask the author" in text
    assert "arXiv:2212.09748" in text
    assert 'class_labels=["crane' not in text  # two classes have that name
    assert "{" not in re.sub(r"```bibtex.*?```", "", text, flags=re.S)


def test_label_of_the_snippet_is_a_name_of_one_class_only(pipeline):
    for middle, label in [
        ("tiger, Panthera tigris", '["Panthera tigris"]'),
        ("crane", "[2]"),
        ("beach, summer", '["beach, summer"]'),
    ]:
        names = {**pipeline.config.id2label, 2: middle}
        renamed = DiTPipeline(pipeline.transformer, pipeline.vae, pipeline.scheduler, id2label=names)
        assert f"pipeline(class_labels={label}, generator=" in make_card(renamed).text


def test_unconditional_model_has_a_snippet_of_its_own(pipeline):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8, "num_classes": 0}
    card = make_card(DiTPipeline(DiTModel(DiTConfig(**sizes)), pipeline.vae, pipeline.scheduler))
    assert (
        "pipeline(num_images=1, guidance_scale=1, generator=" in card.text
    )  # guidance is refused, and the default is 4
    assert "class-conditional-image-generation" not in card.data.tags


def test_card_of_a_training_names_no_path_and_no_person(pipeline, tmp_path, monkeypatch):
    (tmp_path / "jane" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings = {name: field.default for name, field in TrainSettings.__dataclass_fields__.items()}
    local = {"output_dir": "/home/jane/out", "dataset_name": "jane/images", "vae_name_or_path": "./vae"}
    settings |= {**local, "class_names_file": "/home/jane/names.txt", "hub_model_id": "jane/dit"}
    settings |= {"init_from": "/home/jane/dit", "hub_license": "apache-2.0"}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "images_seen": 6, "loss": 1.0}\n' * 2)
    text = str(TrainingCard(tmp_path, settings, card_names()).make(pipeline))
    assert "jane" not in text
    assert str(tmp_path) not in text
    assert "| data set | a local one |" in text
    assert "| fine-tuned from | a local model |" in text
    assert "| learning rate | 0.0001 |" in text
    assert "| images seen in the fine-tuning | 6 |" in text
    assert "license: apache-2.0" in text


def test_secret_in_a_recipe_is_refused(pipeline):
    with pytest.raises(ValueError, match="the card would hold a Hugging Face token"):
        make_card(pipeline, recipe={"note": "hf" + "_" + "x" * 34})


def test_pushed_card_names_the_repository_where_the_folder_s_named_itself(hub, pipeline, saved):
    make_card(pipeline).save(saved / "README.md")
    assert all('from_pretrained("."' in snippet for snippet in snippets((saved / "README.md").read_text()))
    push_folder(saved, "user/dit")
    text = hub.repository("user/dit").files()["README.md"].decode()
    assert len(snippets(text)) == 2
    assert all('from_pretrained("user/dit"' in snippet for snippet in snippets(text))
    assert '"."' not in text


@pytest.mark.slow
def test_snippets_run_as_printed(hub, pipeline, hub_environment, tmp_path):
    """In one process, the second with the package blocked."""
    pipeline.push_to_hub("user/dit")
    with_package, without = snippets(hub.repository("user/dit").files()["README.md"].decode())
    forget = "import sys\nfor name in [n for n in sys.modules if n.startswith('dit_hf')]: del sys.modules[name]\n"
    forget += "sys.modules['dit_hf'] = None\nimport os; os.rename('sample.png', 'first.png')\n"
    code = tmp_path / "snippets.py"
    code.write_text(with_package + forget + without)
    result = run_script(code, cwd=tmp_path, environment=hub_environment)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("first.png", "sample.png"))
    assert first.shape == (16, 16, 3)
    np.testing.assert_array_equal(first, second)
