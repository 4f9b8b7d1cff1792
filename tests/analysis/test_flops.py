"""Counting in closed form against torch's counter, autograd's saved tensors, built models and the paper's tables."""

import pytest
import torch
from diffusers import AutoencoderKL
from switches import CASES
from torch.utils.flop_counter import FlopCounterMode

from dit_hf import DiTConfig, DiTModel
from dit_hf.analysis import count_activations, count_gmacs, count_macs, count_parameters, count_vae_macs
from dit_hf.analysis.quoted import BLOCKS_400K, GMACS_512
from dit_hf.configuration_dit import PAPER_SIZES

BLOCK_TYPES = ["in_context", "cross_attention", "adaln", "adaln_zero"]
ODD = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 2, "sample_size": (8, 12)}
SHAPES = {
    "odd": {**ODD, "in_channels": 3, "num_classes": 10, "mlp_ratio": 2.5},
    "unconditional": {**ODD, "num_classes": 0, "learn_sigma": False},
    "no null class": {**ODD, "num_classes": 7, "class_dropout_prob": 0.0},
}


def torch_macs(config: DiTConfig, backward: bool = False) -> int:
    """Eager attention is two matrix products: torch's counter passes over fused attention on a CPU."""
    with torch.device("meta"):
        model = DiTModel(config).train()
        model.set_attn_implementation("eager")
        latents = torch.empty(1, config.in_channels, *config.sample_height_width)
        labels = torch.zeros(1, dtype=torch.long) if config.num_classes else None
        drop = torch.zeros(1, dtype=torch.bool) if config.has_null_class else None
        with FlopCounterMode(display=False) as counter:
            sample = model(latents, torch.zeros(1), labels, drop_labels=drop).sample
            if backward:
                sample.sum().backward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize(
    ("shape", "switches"), [*((shape, "paper") for shape in SHAPES), *(("odd", name) for name in CASES)]
)
def test_multiply_adds_and_parameters_are_exactly_those_of_the_built_model(shape, switches, block_type):
    config = DiTConfig(**SHAPES[shape], **CASES[switches], block_type=block_type)
    with torch.device("meta"):
        model = DiTModel(config)
    assert count_macs(config).total == torch_macs(config)
    assert count_parameters(config) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_twelve_sizes_are_the_paper_s(name):
    config = DiTConfig.from_name(name)
    assert count_gmacs(config) == pytest.approx(PAPER_SIZES[name].gmacs, abs=0.02)
    assert count_parameters(config) == PAPER_SIZES[name].num_parameters


@pytest.mark.slow  # builds XL on the meta device, a second each
@pytest.mark.parametrize("name", PAPER_SIZES)
def test_twelve_sizes_are_exactly_what_torch_counts(name):
    config = DiTConfig.from_name(name)
    assert count_macs(config).total == torch_macs(config)


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_four_blocks_are_the_paper_s(block_type):
    config, printed = DiTConfig.from_name("DiT-XL/2", block_type=block_type), BLOCKS_400K[block_type]
    assert count_gmacs(config) == pytest.approx(printed.gmacs, abs=0.1)
    assert count_parameters(config) / 1e6 == pytest.approx(printed.million_parameters, abs=1)


def test_model_of_512_pixels_is_the_paper_s():
    assert count_gmacs(DiTConfig.from_name("DiT-XL/2", sample_size=64)) == pytest.approx(GMACS_512, abs=0.07)


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
def test_training_is_three_forwards_but_for_the_inputs_that_need_no_gradient(block_type):
    config = DiTConfig(**SHAPES["odd"], block_type=block_type)
    macs = count_macs(config)
    without_gradient = macs.patchify + 256 * config.hidden_size  # of the latents, and of the timestep's sines
    assert torch_macs(config, backward=True) == 3 * macs.total - without_gradient


def kept_for_backward(config: DiTConfig, batch_size: int, checkpointing: bool) -> int:
    """Bytes of distinct storages that autograd keeps during a forward, weights left out."""
    model = DiTModel(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(
            torch.randn(batch_size, config.in_channels, *config.sample_height_width),
            torch.zeros(batch_size),
            torch.zeros(batch_size, dtype=torch.long),
            drop_labels=torch.zeros(batch_size, dtype=torch.bool),
        )
    return sum(num_bytes for num_bytes, _ in kept.values())


def rotary_table(config: DiTConfig) -> int:
    """Bytes of the table that the images of a batch share: cosines and sines of 24 patches, heads of 16 channels."""
    return 0 if config.position_embedding == "sincos" else 4 * 24 * 16


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize("switches", CASES)
def test_activations_are_exactly_what_autograd_keeps(switches, block_type):
    config = DiTConfig(**SHAPES["odd"], **CASES[switches], block_type=block_type)
    kept = kept_for_backward(config, 2, checkpointing=False) - rotary_table(config)
    assert 2 * 4 * count_activations(config) == kept


@pytest.mark.parametrize("block_type", BLOCK_TYPES)
@pytest.mark.parametrize("switches", CASES)
def test_checkpointing_keeps_the_inputs_of_the_blocks_and_one_block(switches, block_type):
    fields = {**SHAPES["odd"], **CASES[switches], "block_type": block_type}
    one, three = (DiTConfig(**{**fields, "num_hidden_layers": n}) for n in (1, 3))
    inside = count_activations(three) - count_activations(one)  # two blocks
    kept = kept_for_backward(three, 2, checkpointing=True) - rotary_table(three)
    assert 2 * 4 * (count_activations(three, checkpointing=True) - inside // 2) == kept


def test_vae_is_counted_as_its_convolutions():
    config = {
        "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
        "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_add_attention": False,
        "latent_channels": 2,
    }  # fmt: skip
    area = {"encoder": 0, "decoder": 0}
    vae = AutoencoderKL(**config)
    for name, module in vae.named_modules():
        part = name.split(".")[0]
        if isinstance(module, torch.nn.Conv2d):  # all at the latents' resolution, as there is one level
            side = "encoder" if part in ("encoder", "quant_conv") else "decoder"
            area[side] += module.weight.numel()
    found = count_vae_macs(config, (6, 4))
    assert (found.encoder, found.decoder) == (24 * area["encoder"], 24 * area["decoder"])
