"""Adapters: what they train, that PEFT itself reads them, and that they leave no trace."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from dit_hf import DiTImg2ImgPipeline, DiTModel, DiTPipeline
from dit_hf.finetuning import add_lora, carry_classes, load_lora, merge_lora, merged, remove_lora, save_lora

LABELS = torch.tensor([0, 1, 3])
X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def answer(model: DiTModel, labels: torch.Tensor = LABELS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(X, 500, labels).sample


def adapted(model: DiTModel, rank: int = 4) -> DiTModel:
    """The model with three classes of which one is new, and an adapter that does something."""
    carry_classes(model, [2, None, 0])
    add_lora(model, rank)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def adapter(build, tmp_path: Path) -> Path:
    save_lora(adapted(build()), tmp_path / "adapter", {0: "goldfish", 1: "my cat", 2: "tench"}, None)
    return tmp_path / "adapter"


@pytest.mark.parametrize("block_type", ["in_context", "cross_attention", "adaln", "adaln_zero"])
def test_a_fresh_adapter_changes_nothing_and_trains_attention_mlp_and_labels(build, block_type: str):
    model = build(block_type=block_type)
    before = answer(model, LABELS)
    add_lora(model, 4)
    torch.testing.assert_close(answer(model, LABELS), before, rtol=0, atol=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = 7 if block_type == "cross_attention" else 4
    assert sum("lora_A" in name for name in trained) == sum("lora_B" in name for name in trained) == 2 * layers
    assert [name for name in trained if "lora_" not in name] == [
        "y_embedder.modules_to_save.default.embedding_table.weight"
    ]


def test_an_adapter_brings_its_classes_and_gives_the_answers_it_was_saved_with(build, adapter: Path):
    expected, model = answer(adapted(build())), build()
    assert load_lora(model, adapter) == {0: "goldfish", 1: "my cat", 2: "tench"}
    assert model.config.num_classes == 3
    torch.testing.assert_close(answer(model), expected, rtol=0, atol=0)


def test_peft_itself_reads_the_adapter_and_gives_the_same_answers(build, adapter: Path):
    ours, theirs = build(), build()
    load_lora(ours, adapter)
    carry_classes(theirs, [None] * 3)
    loaded = PeftModel.from_pretrained(theirs, adapter)
    torch.testing.assert_close(answer(ours), answer(loaded), rtol=0, atol=0)


def test_a_merged_adapter_is_w_plus_scaled_b_a(build, adapter: Path):
    model, before = build(), build()
    load_lora(model, adapter)
    merge_lora(model, 0.5)
    assert set(model.state_dict()) == set(before.state_dict())
    weights = load_file(adapter / "adapter_model.safetensors")
    key = "blocks.1.attn.qkv"
    a, b = (weights[f"base_model.model.{key}.lora_{letter}.weight"] for letter in "AB")
    expected = before.state_dict()[f"{key}.weight"] + 0.5 * b @ a  # alpha / rank = 1
    torch.testing.assert_close(model.state_dict()[f"{key}.weight"], expected, rtol=1e-5, atol=1e-6)
    assert not model.pos_embed.requires_grad
    assert model.blocks[0].mlp.fc1.weight.requires_grad


def test_merging_changes_no_answer_and_the_model_saves_as_any_other(build, adapter: Path, tmp_path: Path):
    model = build()
    load_lora(model, adapter)
    expected = answer(model)
    merge_lora(model)
    torch.testing.assert_close(answer(model), expected, rtol=1e-4, atol=1e-5)  # sums in another order
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(DiTModel.from_pretrained(tmp_path / "merged")), answer(model), rtol=0, atol=0)


def test_an_adapter_that_is_taken_out_leaves_no_trace(build, adapter: Path):
    model, before = build(), build()
    load_lora(model, adapter)
    assert not torch.allclose(answer(model, torch.tensor([0, 1, 2])), answer(before, torch.tensor([0, 1, 2])))
    remove_lora(model)
    remove_lora(model)  # again does nothing
    assert model.config.num_classes == 4
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    load_lora(model, adapter)  # and it can be loaded again


def test_a_pipeline_draws_the_adapters_classes_and_returns_to_its_own(pipeline: DiTPipeline, adapter: Path):
    def draw(label: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(label, num_inference_steps=3, generator=generator, output_type="latent").images

    before = draw("goldfish")
    pipeline.load_lora_weights(adapter)
    assert pipeline.labels == {"goldfish": 0, "my cat": 1, "tench": 2}
    drawn = draw("my cat")
    assert not torch.allclose(draw("goldfish"), before)
    pipeline.unload_lora_weights()
    torch.testing.assert_close(draw("goldfish"), before, rtol=0, atol=0)
    pipeline.load_lora_weights(adapter)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()  # as users of diffusers call it after fusing
    torch.testing.assert_close(draw("my cat"), drawn, rtol=1e-3, atol=1e-3)  # several steps of sums in another order


def test_pipeline_that_shares_the_model_takes_the_adapter_out_too(pipeline: DiTPipeline, adapter: Path):
    names = pipeline.config.id2label
    pipeline.load_lora_weights(adapter)
    other = DiTImg2ImgPipeline.from_pipe(pipeline)
    other.unload_lora_weights()
    assert other.config.id2label == names
    assert other.transformer.config.num_classes == 4


def test_a_pipeline_with_an_adapter_is_saved_only_once_it_is_fused(
    pipeline: DiTPipeline, adapter: Path, tmp_path: Path
):
    pipeline.load_lora_weights(adapter)
    with pytest.raises(ValueError, match=r"an adapter is loaded .*: call fuse_lora\(\) .* or unload_lora_weights\(\)"):
        pipeline.save_pretrained(tmp_path / "saved")
    merged(pipeline).save_pretrained(tmp_path / "copy")  # a copy that is merged; the pipeline keeps its adapter
    assert pipeline.transformer.peft_config
    pipeline.fuse_lora()
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = [DiTPipeline.from_pretrained(tmp_path / name, vae=None) for name in ("saved", "copy")]
    for each in loaded:
        assert each.labels == {"goldfish": 0, "my cat": 1, "tench": 2}
        torch.testing.assert_close(each.transformer.state_dict(), pipeline.transformer.state_dict(), rtol=0, atol=0)


def test_a_name_that_is_taken_and_an_adapter_in_training_are_refused(build, adapter: Path):
    model = build()
    load_lora(model, adapter, "mine")
    with pytest.raises(ValueError, match="an adapter 'mine' is loaded already: choose another adapter_name"):
        load_lora(model, adapter, "mine")
    with pytest.raises(ValueError, match=r"adapter_name='a\.b': use letters"):
        load_lora(model, adapter, "a.b")
    with pytest.raises(ValueError, match="the model has an adapter already"):
        add_lora(model, 2)
    with pytest.raises(ValueError, match="the model has an adapter in training"):
        load_lora(adapted(build()), adapter)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "does not fit: load the model it was made for"),
        ({"num_hidden_layers": 1}, "does not fit"),
        ({"num_hidden_layers": 3}, r"the adapter has no base_model.model.blocks\.2"),
        ({"num_classes": 0}, r"embedding_table.weight \(4, 32\), which does not fit"),
        ({"class_dropout_prob": 0.0}, r"embedding_table.weight \(4, 32\), which does not fit"),
        ({"block_type": "cross_attention"}, r"the adapter has no .*blocks\.0\.cross_attn"),
    ],
)
def test_an_adapter_of_another_model_is_refused_and_nothing_changes(build, adapter: Path, fields: dict, message: str):
    model, before = build(**fields), build(**fields)
    with pytest.raises(ValueError, match=message):
        load_lora(model, adapter)
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert model.config.num_classes == before.config.num_classes


def test_folders_that_are_no_adapters_are_refused(build, adapter: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="has no adapter_config.json"):
        load_lora(build(), tmp_path)
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        load_lora(build(), adapter)


def test_an_adapter_whose_configuration_is_of_another_rank_is_refused_and_nothing_changes(build, adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    model = build()
    with pytest.raises(ValueError, match="does not fit: load the model it was made for"):
        load_lora(model, adapter)
    assert model.config.num_classes == build().config.num_classes


def test_keys_of_another_tool_are_refused(build, adapter: Path):
    save_file({"transformer.blocks.0.attn.lora.up": torch.zeros(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="transformer.blocks.0.attn.lora.up"):
        load_lora(build(), adapter)


def test_ranks_outside_the_model_and_missing_adapters_are_refused(build):
    with pytest.raises(ValueError, match=r"rank=33 is outside 1\.\.32"):
        add_lora(build(), 33)
    with pytest.raises(ValueError, match="has no adapter to save: call add_lora"):
        save_lora(build(), "nowhere", None, None)
    with pytest.raises(ValueError, match="the model has no adapter: load one first"):
        merge_lora(build())


def test_no_path_of_this_machine_is_written(build, tmp_path: Path):
    save_lora(adapted(build()), tmp_path / "adapter", None, str(tmp_path))
    save_lora(adapted(build()), tmp_path / "named", None, "user/dit")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == "user/dit"
    for file in (tmp_path / "adapter").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
