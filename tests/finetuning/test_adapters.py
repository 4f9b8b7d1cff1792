"""Several adapters by name: what they add, which classes they bring, and that they go without a trace."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from switches import ALL

from dit_hf import DiTModel, DiTPipeline
from dit_hf.conversion import to_diffusers, to_original
from dit_hf.finetuning import add_lora, carry_classes, resize_positions, save_lora
from dit_hf.finetuning.adapters import merged

CLASSES = {"dog": {0: "my dog", 1: "goldfish"}, "style": {0: "goldfish", 1: "my cat", 2: "tench"}}
KEY = "blocks.1.attn.qkv"


def write_adapter(model: DiTModel, folder: Path, name: str, rank: int, alpha: float) -> Path:
    """An adapter that does something, with classes of its own."""
    carry_classes(model, [None] * len(CLASSES[name]))
    add_lora(model, rank, alpha)
    generator = torch.Generator().manual_seed(rank)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    save_lora(model, folder / name, CLASSES[name], None)
    return folder / name


@pytest.fixture
def dog(build, tmp_path: Path) -> Path:
    return write_adapter(build(), tmp_path, "dog", 2, 4.0)


@pytest.fixture
def style(build, tmp_path: Path) -> Path:
    return write_adapter(build(), tmp_path, "style", 3, 3.0)


@pytest.mark.parametrize("switches", [{}, ALL, {**ALL, "position_embedding": "both"}], ids=["paper", "rope", "both"])
def test_adapter_of_another_size_draws_there_as_it_was_trained_and_loading_it_says_so(build, tmp_path: Path, switches):
    trained = build(**switches)
    resize_positions(trained, (12, 16), "interpolate")
    folder = write_adapter(trained, tmp_path, "dog", 2, 4.0)
    call = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"}
    images = []
    for model, size in ((trained, {}), (build(**switches), {"height": 12, "width": 16})):
        pipeline = DiTPipeline(model.eval(), None, DDIMScheduler(clip_sample=False))
        pipeline.set_progress_bar_config(disable=True)
        if size:
            with pytest.warns(
                UserWarning, match=r"on latents of size \[12, 16\], and the model draws 8: call the pipel"
            ):
                pipeline.load_lora_weights(folder)
            size["position_policy"] = "interpolate"
        images.append(pipeline([1], generator=torch.Generator().manual_seed(0), **call, **size).images)
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)  # the adapter beside the weights
    assert images[0].shape[2:] == (12, 16)


def delta(folder: Path, factor: float) -> torch.Tensor:
    """The change of one Linear in float64: factor * B A."""
    weights = load_file(folder / "adapter_model.safetensors")
    a, b = (weights[f"base_model.model.{KEY}.lora_{letter}.weight"].double() for letter in "AB")
    return factor * b @ a


def output(model: DiTModel) -> torch.Tensor:
    """What the Linear gives for the unit vectors, which is its weight."""
    layer, width = model.get_submodule(KEY), model.config.hidden_size
    with torch.no_grad():
        return (layer(torch.eye(width)) - layer(torch.zeros(1, width))).T.double()


def table(folder: Path) -> torch.Tensor:
    return load_file(folder / "adapter_model.safetensors")["base_model.model.y_embedder.embedding_table.weight"]


def both(pipeline: DiTPipeline, dog: Path, style: Path) -> DiTPipeline:
    pipeline.load_lora_weights(dog, "dog")
    pipeline.load_lora_weights(style, adapter_name="style")
    return pipeline


def test_adapters_are_added_at_their_scales_and_the_first_gives_the_classes(pipeline, dog: Path, style: Path):
    model = pipeline.transformer
    base = output(model)
    both(pipeline, dog, style)
    assert pipeline.get_list_adapters() == {"transformer": ["dog", "style"]}
    assert (pipeline.get_active_adapters(), pipeline.config.id2label) == (["style"], CLASSES["style"])
    torch.testing.assert_close(output(model), base + delta(style, 1.0), rtol=1e-5, atol=1e-6)

    pipeline.set_adapters(["dog", "style"], [0.5, -2])
    assert (pipeline.get_active_adapters(), pipeline.config.id2label) == (["dog", "style"], CLASSES["dog"])
    expected = base + delta(dog, 0.5 * 2.0) + delta(style, -2.0)  # alpha / rank is 2 for the first, 1 for the second
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.y_embedder.embedding_table.weight.data, table(dog), rtol=0, atol=0)
    assert model.config.num_classes == 2

    pipeline.set_adapters("style", 0.25)
    torch.testing.assert_close(output(model), base + delta(style, 0.25), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.y_embedder.embedding_table.weight.data, table(style), rtol=0, atol=0)
    assert pipeline(["tench"], num_inference_steps=2, output_type="latent").images.shape[0] == 1


def test_adapters_are_disabled_enabled_deleted_and_unloaded_without_a_trace(pipeline, build, dog: Path, style: Path):
    own, model = pipeline.config.id2label, pipeline.transformer
    before = build()
    both(pipeline, dog, style)
    pipeline.set_adapters(["dog", "style"], [0.5, 2.0])
    adapted = output(model)
    pipeline.disable_lora()
    assert (pipeline.get_active_adapters(), pipeline.config.id2label, model.config.num_classes) == ([], own, 4)
    torch.testing.assert_close(output(model), output(before), rtol=0, atol=0)
    pipeline.enable_lora()
    assert (pipeline.get_active_adapters(), pipeline.config.id2label) == (["dog", "style"], CLASSES["dog"])
    torch.testing.assert_close(output(model), adapted, rtol=0, atol=0)

    pipeline.delete_adapters("dog")
    assert (pipeline.get_list_adapters()["transformer"], pipeline.config.id2label) == (["style"], CLASSES["style"])
    torch.testing.assert_close(output(model), output(before) + delta(style, 2.0), rtol=1e-5, atol=1e-6)
    pipeline.load_lora_weights(dog)
    assert pipeline.get_list_adapters() == {"transformer": ["style", "default_0"]}
    pipeline.delete_adapters(["style", "default_0"])
    assert (pipeline.get_list_adapters(), pipeline.config.id2label) == ({"transformer": []}, own)
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)

    both(pipeline, dog, style).unload_lora_weights()
    assert pipeline.config.id2label == own
    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_disabled_adapters_stay_disabled_when_others_are_deleted_or_fused(pipeline, build, dog: Path, style: Path):
    own, model, plain = pipeline.config.id2label, pipeline.transformer, output(build())
    both(pipeline, dog, style)
    pipeline.disable_lora()
    with pytest.raises(ValueError, match="the adapters are disabled: call enable_lora first"):
        pipeline.fuse_lora()
    torch.testing.assert_close(output(merged(pipeline).transformer), plain, rtol=0, atol=0)
    pipeline.delete_adapters("dog")
    assert (pipeline.get_active_adapters(), pipeline.config.id2label, model.config.num_classes) == ([], own, 4)
    torch.testing.assert_close(output(model), plain, rtol=0, atol=0)
    pipeline.enable_lora()
    assert (pipeline.get_active_adapters(), pipeline.config.id2label) == (["style"], CLASSES["style"])


WRITERS = {
    "save_pretrained": lambda pipeline, folder: pipeline.save_pretrained(folder),
    "in diffusers' form": lambda pipeline, folder: pipeline.save_pretrained(folder, format="diffusers"),
    "of the model": lambda pipeline, folder: pipeline.transformer.save_pretrained(folder),
    "push_to_hub": lambda pipeline, folder: pipeline.push_to_hub("user/dit"),
    "push_to_hub of the model": lambda pipeline, folder: pipeline.transformer.push_to_hub("user/dit"),
    "export": lambda pipeline, folder: pipeline.export(folder, format="torch"),
    "to_original": lambda pipeline, folder: to_original(pipeline.transformer),
    "to_diffusers": lambda pipeline, folder: to_diffusers(pipeline.transformer),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_weights_beside_an_adapter_are_written_by_nothing_also_while_it_is_disabled(pipeline, dog, write, tmp_path):
    """transformers would save the adapter alone, without its classes, into a folder that loads as another model."""
    pipeline.load_lora_weights(dog, "dog")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"an adapter is loaded \(dog\): call fuse_lora\(\) .* or unload_lora"):
            write(pipeline, tmp_path / "written")
        assert not (tmp_path / "written").exists()
        pipeline.disable_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "written")


def test_fused_adapters_save_and_can_be_taken_out_again(pipeline, dog: Path, style: Path, tmp_path: Path):
    model = pipeline.transformer
    base = output(model)
    both(pipeline, dog, style).set_adapters(["dog", "style"], [0.5, 2.0])
    pipeline.fuse_lora(0.5)
    expected = base + delta(dog, 0.5 * 0.5 * 2.0) + delta(style, 0.5 * 2.0)
    torch.testing.assert_close(model.get_submodule(KEY).weight.data.double(), expected, rtol=1e-5, atol=1e-6)
    pipeline.save_pretrained(tmp_path / "fused")
    loaded = DiTPipeline.from_pretrained(tmp_path / "fused", vae=None)
    assert loaded.config.id2label == CLASSES["dog"]
    torch.testing.assert_close(output(loaded.transformer), expected, rtol=1e-5, atol=1e-6)

    pipeline.unfuse_lora()
    assert (pipeline.get_active_adapters(), pipeline.config.id2label) == (["dog", "style"], CLASSES["dog"])
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-6)
    base_weight = model.get_submodule(KEY).get_base_layer().weight.data.double()
    torch.testing.assert_close(base_weight, base, rtol=1e-5, atol=1e-6)  # up to rounding
    pipeline.unload_lora_weights()
    torch.testing.assert_close(output(model), base, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="no adapter is fused"):
        pipeline.unfuse_lora()


def test_one_of_several_adapters_is_fused_with_its_classes(pipeline, dog: Path, style: Path):
    base = output(pipeline.transformer)
    both(pipeline, dog, style).fuse_lora(adapter_names=["dog"])
    assert pipeline.config.id2label == CLASSES["dog"]
    torch.testing.assert_close(output(pipeline.transformer), base + delta(dog, 2.0), rtol=1e-5, atol=1e-6)


def test_an_adapter_is_loaded_on_top_of_a_fused_one(pipeline, dog: Path, style: Path):
    base = output(pipeline.transformer)
    pipeline.load_lora_weights(dog)
    pipeline.fuse_lora()
    pipeline.load_lora_weights(style)
    torch.testing.assert_close(
        output(pipeline.transformer), base + delta(dog, 2.0) + delta(style, 1.0), rtol=1e-5, atol=1e-6
    )
    pipeline.unload_lora_weights()
    assert pipeline.config.id2label == CLASSES["dog"]  # the fused adapter's classes are the model's own now
    with pytest.raises(ValueError, match="no adapter is fused"):
        pipeline.unfuse_lora()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe: pipe.set_adapters("cat"), "no adapter is called 'cat': loaded are dog, style"),
        (lambda pipe: pipe.set_adapters(["dog", "dog"]), "each only once"),
        (lambda pipe: pipe.set_adapters([]), "name at least one"),
        (lambda pipe: pipe.set_adapters(["dog", "style"], [1.0]), "1 scales for 2 adapters"),
        (lambda pipe: pipe.set_adapters("dog", float("nan")), "scale=nan is no finite number"),
        (lambda pipe: pipe.set_adapters("dog", "1"), "scale='1' is no finite number"),
        (lambda pipe: pipe.delete_adapters("cat"), "no adapter is called 'cat'"),
        (lambda pipe: pipe.fuse_lora(adapter_names=["cat"]), "no adapter is called 'cat'"),
    ],
)
def test_wrong_names_and_scales_are_refused(pipeline, dog: Path, style: Path, call, message: str):
    both(pipeline, dog, style)
    with pytest.raises(ValueError, match=message):
        call(pipeline)
    assert pipeline.get_active_adapters() == ["style"]


def test_unknown_keywords_are_errors(pipeline, dog: Path):
    with pytest.raises(TypeError, match="weight_name"):
        pipeline.load_lora_weights(dog, weight_name="adapter_model.safetensors")
    with pytest.raises(TypeError, match="components"):
        pipeline.fuse_lora(components=["transformer"])


@pytest.mark.parametrize("call", ["set_adapters", "disable_lora", "enable_lora", "delete_adapters", "unfuse_lora"])
def test_without_an_adapter_there_is_nothing_to_choose(pipeline, call: str):
    arguments = ["dog"] if call in ("set_adapters", "delete_adapters") else []
    with pytest.raises(ValueError, match="no adapter is"):
        getattr(pipeline, call)(*arguments)
    assert pipeline.get_list_adapters() == {"transformer": []}
