"""`dit-hf convert` from ids on the Hub: the card names the commit and the licence that the source has."""

import sys

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file
from typer.testing import CliRunner

from dit_hf import DiTConfig, DiTModel, DiTPipeline, cli
from dit_hf.conversion import from_original, to_diffusers
from dit_hf.conversion.folders import _has_published_size

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8}


@pytest.fixture
def convert(hub, monkeypatch):
    """Run the command with the cache of this test's Hub, whose place the loaders know from when they were imported."""
    load, config = DiTPipeline.from_pretrained.__func__, diffusers.DiffusionPipeline.load_config.__func__
    cache = {"cache_dir": constants.HF_HUB_CACHE}
    monkeypatch.setattr(DiTPipeline, "from_pretrained", classmethod(lambda c, s, **k: load(c, s, **{**cache, **k})))
    monkeypatch.setattr(DiTPipeline, "load_config", classmethod(lambda c, s, **k: config(c, s, **{**cache, **k})))

    def run(*arguments) -> None:
        result = CliRunner().invoke(cli.app, ["convert", *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    return run


@pytest.fixture
def theirs(hub, pipeline, tmp_path) -> DiTModel:
    """A repository in diffusers' form, with a card that says its licence, and a branch beside it."""
    torch.manual_seed(1)
    model = DiTModel(DiTConfig(**SIZES, num_classes=1000))
    parts = {"transformer": to_diffusers(model), "vae": pipeline.vae, "scheduler": DDIMScheduler(clip_sample=False)}
    diffusers.DiTPipeline(**parts).save_pretrained(tmp_path / "theirs")
    card = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n# Theirs\n"
    (tmp_path / "theirs" / "README.md").write_text(card)
    api = HfApi()
    api.create_repo("user/theirs")
    api.upload_folder(repo_id="user/theirs", folder_path=tmp_path / "theirs")
    api.create_tag("user/theirs", tag="v1")
    api.upload_file(repo_id="user/theirs", path_or_fileobj=b"later", path_in_repo="note.txt")
    return model


@pytest.mark.parametrize("revision", [None, "v1"])
def test_card_of_a_source_on_the_hub_names_its_commit_and_licence(hub, convert, theirs, tmp_path, revision):
    convert("user/theirs", tmp_path / "ours", *(["--revision", revision] if revision else []))
    repository = hub.repository("user/theirs")
    commit = (repository.tags[revision] if revision else repository.refs["main"]).oid
    card = ModelCard.load(tmp_path / "ours" / "README.md")
    assert f"[user/theirs](https://huggingface.co/user/theirs) at commit `{commit}`" in card.text
    assert card.data.base_model == "user/theirs"
    assert (card.data.license, card.data["license_name"], card.data["license_link"]) == ("other", "mine", "LICENSE")
    loaded = DiTPipeline.from_pretrained(tmp_path / "ours").transformer
    for key, weight in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], weight), key


def test_source_on_the_hub_becomes_a_checkpoint_and_diffusers_form(hub, convert, theirs, tmp_path):
    convert("user/theirs", tmp_path / "w.pt", "--to", "original")
    again = from_original(tmp_path / "w.pt", num_attention_heads=2)
    for key, weight in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key
    convert("user/theirs", tmp_path / "diffusers", "--to", "diffusers", "--license", "apache-2.0")
    assert ModelCard.load(tmp_path / "diffusers" / "README.md").data.license == "apache-2.0"
    stock = diffusers.DiTPipeline.from_pretrained(tmp_path / "diffusers")
    for part in ("transformer", "vae"):
        source = load_file(tmp_path / "theirs" / part / "diffusion_pytorch_model.safetensors")
        weights = getattr(stock, part).state_dict()
        assert weights.keys() - {"pos_embed.pos_embed"} == source.keys()  # a buffer that diffusers computes
        for key, weight in source.items():
            assert torch.equal(weights[key], weight), key
    assert type(stock.transformer) is diffusers.DiTTransformer2DModel


def test_autoencoder_of_another_repository_has_its_own_revisions(hub, convert, theirs, pipeline, tmp_path):
    pipeline.vae.save_pretrained(tmp_path / "vae")
    HfApi().create_repo("user/vae")
    HfApi().upload_folder(repo_id="user/vae", folder_path=tmp_path / "vae")
    convert("user/theirs", tmp_path / "ours", "--vae", "user/vae", "--revision", "v1")
    assert (tmp_path / "ours" / "vae" / "config.json").is_file()


def test_source_in_this_form_without_a_licence_gets_none(hub, convert, pipeline, tmp_path, caplog):
    pipeline.push_to_hub("user/ours")
    convert("user/ours", tmp_path / "again")
    card = ModelCard.load(tmp_path / "again" / "README.md")
    assert card.data.license is None
    assert "ask the author before you use or share" in card.text
    assert "user/ours does not state a licence" in caplog.text


def test_published_size_is_that_of_the_original_s_weights():
    assert _has_published_size(DiTConfig())
    assert _has_published_size(DiTConfig(sample_size=64))
    for fields in ({"num_classes": 10}, {"sample_size": 16}, {"patch_size": 4}, {"block_type": "adaln"}):
        assert not _has_published_size(DiTConfig(**fields))


@pytest.mark.parametrize("fault", ["missing", "network", "cut"])
def test_source_that_cannot_be_read_is_one_line(hub, theirs, tmp_path, monkeypatch, capsys, fault):
    source = "user/none" if fault == "missing" else "user/theirs"
    if fault == "network":
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}")
    if fault == "cut":
        hub.cut("GET", "model_index.json", after=10, times=1000)
    monkeypatch.setattr(sys, "argv", ["dit-hf", "convert", source, str(tmp_path / "new")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("dit-hf: ")
    assert not (tmp_path / "new").exists()


def test_no_form_holds_a_token_or_a_path_of_this_machine(hub, pipeline, tmp_path, monkeypatch):
    home = tmp_path / "home" / "jane"
    pipeline.vae.save_pretrained(home / "vae")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    model = DiTModel(DiTConfig(**SIZES, num_classes=1000, timestep_freq_shift=1.0))
    DiTPipeline(model, pipeline.vae, DDIMScheduler(clip_sample=False)).save_pretrained(home / "mine")
    loaded = DiTPipeline.from_pretrained(home / "mine", vae=str(home / "vae"))
    loaded.save_pretrained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "stock", format="diffusers")
    for to in ("dit_hf", "diffusers"):
        result = CliRunner().invoke(cli.app, ["convert", str(home / "mine"), str(tmp_path / f"to {to}"), "--to", to])
        assert result.exit_code == 0, result.output
    loaded.transformer.save_pretrained(tmp_path / "net")
    token = hub.add_user("user").encode()
    written = [path for name in ("again", "stock", "net", "to dit_hf", "to diffusers")
               for path in (tmp_path / name).rglob("*") if path.is_file()]  # fmt: skip
    assert len(written) > 30
    for path in written:
        for private in (token, b"jane", str(tmp_path).encode()):
            assert private not in path.read_bytes(), (path.relative_to(tmp_path), private)
