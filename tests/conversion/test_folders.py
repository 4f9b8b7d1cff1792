"""`dit-hf convert`: every source to every form, and back to the same bits."""

import re
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner

from dit_hf import DiTConfig, DiTPipeline, cli
from dit_hf.cards.converted import make_converted_card
from dit_hf.cards.licences import ORIGINAL, Licence
from dit_hf.conversion import from_original, to_original
from dit_hf.conversion.assemble import empty_model
from dit_hf.conversion.folders import choose_licence

HEADS = ["--num-attention-heads", "4"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory, golden_dir) -> Path:
    """The golden checkpoint, and a VAE."""
    folder = tmp_path_factory.mktemp("sources")
    torch.save(load_file(golden_dir / "dit_p2_c4.safetensors"), folder / "DiT-P-2.pt")
    torch.manual_seed(3)
    AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4).save_pretrained(folder / "vae")
    return folder


def run(*arguments) -> str:
    result = CliRunner().invoke(cli.app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_checkpoint_becomes_a_folder_and_comes_back_bit_for_bit(sources, tmp_path):
    folder = tmp_path / "dit"
    output = run(sources / "DiT-P-2.pt", folder, "--vae", sources / "vae", *HEADS)
    assert output == f"wrote {folder}\n"
    pipe = DiTPipeline.from_pretrained(folder)
    assert type(pipe.scheduler) is DDPMScheduler
    assert pipe.config.guidance_channels == "first_three"
    for name in ("again.pt", "again.safetensors"):
        run(folder, tmp_path / name, "--to", "original")
        again = to_original(from_original(tmp_path / name, num_attention_heads=4))
        for key, tensor in torch.load(sources / "DiT-P-2.pt", weights_only=True).items():
            assert torch.equal(again[key], tensor), key


def test_card_names_licence_and_origin_and_no_path(sources, tmp_path):
    run(sources / "DiT-P-2.pt", tmp_path / "dit", "--vae", sources / "vae", *HEADS)
    card = ModelCard.load(tmp_path / "dit" / "README.md")
    assert card.data.license is None
    assert "The author has not stated a licence" in card.text
    assert card.data.library_name == "diffusers"
    for row in ("size | none of the paper's", "layers | 2", "width | 48", "attention heads | 4"):
        assert f"| {row} |" in card.text
    assert "`DiT-P-2.pt`" in card.text
    assert str(sources) not in card.content
    assert str(tmp_path) not in card.content
    run(tmp_path / "dit", tmp_path / "mine", "--license", "apache-2.0", "--scheduler", "DDIMScheduler")
    assert ModelCard.load(tmp_path / "mine" / "README.md").data.license == "apache-2.0"
    assert type(DiTPipeline.from_pretrained(tmp_path / "mine").scheduler) is DDIMScheduler
    run(tmp_path / "dit", tmp_path / "silent")
    assert ModelCard.load(tmp_path / "silent" / "README.md").data.license is None
    run(tmp_path / "mine", tmp_path / "copy")
    assert ModelCard.load(tmp_path / "copy" / "README.md").data.license == "apache-2.0"


def test_snippet_of_a_card_asks_for_no_guidance_where_there_is_none(make_model):
    for fields, call in [
        ({"num_classes": 0}, "num_images=1, guidance_scale=1"),
        ({"class_dropout_prob": 0.0}, "class_labels=[5], guidance_scale=1"),
        ({}, "class_labels=[5]"),
    ]:
        pipeline = DiTPipeline(make_model(**{"num_classes": 10, **fields}), None, DDIMScheduler(clip_sample=False))
        card = make_converted_card(pipeline, "dit", "dit.pt", None, Licence(), in_diffusers=False)
        assert f"pipeline({call}, generator=" in card.text


def test_card_of_the_published_weights_has_the_original_s_licence():
    model = empty_model(DiTConfig.from_name("DiT-XL/2"))  # without memory
    pipeline = DiTPipeline(model, None, DDIMScheduler(clip_sample=False))
    licence = choose_licence(Licence(), model.config, may_be_published=True)
    card = make_converted_card(pipeline, "DiT-XL-2-256", "DiT-XL-2-256x256.pt", None, licence, in_diffusers=False)
    assert card.data.license == "cc-by-nc-4.0"
    assert "CC-BY-NC 4.0: not for commercial use" in card.text
    for row in ("size | DiT-XL/2", "layers | 28", "width | 1152", "attention heads | 16", "parameters | 675,129,632"):
        assert f"| {row} |" in card.text


def test_only_weights_that_may_be_the_authors_get_the_original_s_licence():
    config = DiTConfig.from_name("DiT-XL/2")
    assert choose_licence(Licence(), config, may_be_published=True) == ORIGINAL
    assert not choose_licence(Licence(), config, may_be_published=False)
    assert not choose_licence(Licence(), DiTConfig.from_name("DiT-XL/2", num_classes=10), may_be_published=True)
    assert choose_licence(Licence("mit"), config, may_be_published=True) == Licence("mit")
    assert Licence("mit").section == "`mit`."


def test_other_scheduler_keeps_what_the_model_was_trained_with(sources, tmp_path, make_model):
    trained = DDPMScheduler(beta_end=0.01, clip_sample=False, prediction_type="v_prediction", num_train_timesteps=500)
    DiTPipeline(make_model(), None, trained, id2label={1: "one"}).save_pretrained(tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "again", "--scheduler", "DDIMScheduler")
    pipe = DiTPipeline.from_pretrained(tmp_path / "again")
    assert type(pipe.scheduler) is DDIMScheduler
    for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"):
        assert pipe.scheduler.config[name] == trained.config[name], name
    assert pipe.config.id2label == {1: "one"}


def test_betas_of_a_terminal_signal_to_noise_ratio_of_zero_are_kept_or_refused(tmp_path, make_model):
    trained = DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    DiTPipeline(make_model(), None, trained).save_pretrained(tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "again", "--scheduler", "DDIMScheduler")
    assert torch.equal(DiTPipeline.from_pretrained(tmp_path / "again").scheduler.betas, trained.betas)
    with pytest.raises(ValueError, match="PNDMScheduler has no rescale_betas_zero_snr, and the model"):
        run(tmp_path / "ours", tmp_path / "other", "--scheduler", "PNDMScheduler")


def test_another_scheduler_keeps_the_shift_of_flow_matching(tmp_path, make_model):
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    DiTPipeline(make_model(learn_sigma=False), None, flow, prediction_type="flow_sample").save_pretrained(
        tmp_path / "a"
    )
    run(tmp_path / "a", tmp_path / "b", "--scheduler", "UniPCMultistepScheduler")
    run(tmp_path / "b", tmp_path / "c", "--scheduler", "FlowMatchHeunDiscreteScheduler")
    solver, heun = (DiTPipeline.from_pretrained(tmp_path / name).scheduler.config for name in "bc")
    assert (solver["flow_shift"], solver["prediction_type"], heun["shift"]) == (3.0, "flow_prediction", 3.0)


@pytest.mark.parametrize(
    ("scheduler", "prediction", "stated"),
    [
        (DDPMScheduler(clip_sample=False), None, None),
        (
            DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
            None,
            "'squaredcos_cap_v2', .*'sample'",
        ),
        (FlowMatchEulerDiscreteScheduler(), "flow_prediction", "prediction_type='flow_prediction'"),
        (FlowMatchEulerDiscreteScheduler(), "flow_sample", "prediction_type='flow_sample'"),
    ],
)
def test_what_a_checkpoint_cannot_say_is_warned_about(tmp_path, make_model, caplog, scheduler, prediction, stated):
    DiTPipeline(make_model(), None, scheduler, prediction_type=prediction).save_pretrained(tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "w.pt", "--to", "original")
    if stated is None:
        assert "holds weights only" not in caplog.text
    else:
        assert re.search(f"holds weights only, and not that the model was trained with .*{stated}: as the", caplog.text)


def test_checkpoint_needs_no_vae_to_become_another_checkpoint(sources, tmp_path):
    run(sources / "DiT-P-2.pt", tmp_path / "new" / "w.safetensors", "--to", "original", *HEADS)
    assert load_file(tmp_path / "new" / "w.safetensors").keys() == torch.load(sources / "DiT-P-2.pt").keys()


def test_folder_for_diffusers_has_a_card_too_and_comes_back(sources, tmp_path, make_model):
    model = make_model(num_classes=1000, timestep_freq_shift=1.0)
    vae = AutoencoderKL.from_pretrained(sources / "vae")
    DiTPipeline(model, vae, DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "theirs", "--to", "diffusers")
    assert ModelCard.load(tmp_path / "theirs" / "README.md").data.library_name == "diffusers"
    run(tmp_path / "theirs", tmp_path / "back", "--timestep-freq-shift", "1")
    back = DiTPipeline.from_pretrained(tmp_path / "back").transformer
    assert back.config.timestep_freq_shift == 1
    for key, tensor in to_original(model).items():
        assert torch.equal(tensor, back.state_dict()[key]), key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOURCE", "TAKEN"], "nothing is overwritten"),
        (["SOURCE", "SOURCE", "--to", "original"], "nothing is overwritten"),
        (["SOURCE", "NEW", "--to", "original"], "end it with .pt or .safetensors"),
        (["SOURCE", "NEW.pt", "--to", "original", "--license", "mit"], "holds weights only, leave it out"),
        (["SOURCE", "NEW.pt", "--to", "original", "--scheduler", "DDIMScheduler"], "holds weights only, leave it out"),
        (["SOURCE", "NEW"], "pass --vae none"),
        (["SOURCE", "NEW", "--vae", "none"], "pass --num-attention-heads"),
        (["SOURCE", "NEW", "--vae", "none", *HEADS, "--weights", "best"], "choose from ema, model"),
        (["SOURCE", "NEW", "--vae", "none", *HEADS, "--scheduler", "Pipeline"], "no scheduler of diffusers"),
        (["SOURCE", "NEW", "--vae", "none", *HEADS, "--to", "diffusers"], "num_classes=10"),
        (["FLOW", "NEW", "--scheduler", "DDIMScheduler"], "no scheduler of diffusers for flow matching"),
    ],
)
def test_error_is_one_line_and_nothing_is_written(
    arguments, message, sources, tmp_path, monkeypatch, capsys, make_model
):
    if "FLOW" in arguments:
        flow = DiTPipeline(make_model(), None, FlowMatchEulerDiscreteScheduler(), prediction_type="flow_prediction")
        flow.save_pretrained(tmp_path / "flow")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    places = {
        "SOURCE": sources / "DiT-P-2.pt",
        "TAKEN": tmp_path / "taken",
        "NEW": tmp_path / "new",
        "NEW.pt": tmp_path / "new.pt",
        "FLOW": tmp_path / "flow",
    }
    monkeypatch.setattr(sys, "argv", ["dit-hf", "convert", *(str(places.get(word, word)) for word in arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dit-hf: ")]
    assert stop.value.code == 1
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.glob("new*"))
