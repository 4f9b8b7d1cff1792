"""The recipes of CONTRIBUTING.md: their code is run as printed, in the files that they name, and then used."""

import importlib
import re
import sys
import typing
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.testing import assert_close

from dit_hf import DiTModel, configuration_dit
from dit_hf.analysis import count_gmacs, count_macs, count_parameters, flops
from dit_hf.blocks import BLOCKS
from dit_hf.configuration_dit import BlockType, DiTConfig
from dit_hf.diffusion import OBJECTIVES
from dit_hf.training.batch import Draws, LatentBatch
from dit_hf.training.settings import card_names, parse_settings
from dit_hf.training.techniques import TECHNIQUES, Techniques

ROOT = Path(__file__).parents[1]


def recipe(title: str) -> tuple[dict[str, list[str]], str]:
    """The blocks of code of a recipe by the file of `src` that they belong to, and the text of the recipe."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", text.partition(f"### {title}")[2], maxsplit=1, flags=re.MULTILINE)[0]
    files: dict[str, list[str]] = {}
    for step in re.split(r"^\*\*\d\. ", section, flags=re.MULTILINE)[1:]:
        (file,) = re.match(r"`(src/[\w/.]+)`", step).groups()
        files[file] = re.findall(r"^```python\n(.*?)^```", step, re.MULTILINE | re.DOTALL)
    return files, section


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch):
    """Run blocks of code as if they stood at the end of a file, and take everything back after the test."""
    modules = ("blocks", "analysis.flops", "diffusion.objectives", "training.techniques")
    changed = [vars(importlib.import_module(f"dit_hf.{name}")) for name in modules]
    changed += [BLOCKS, OBJECTIVES, TECHNIQUES, flops.LAYER_COSTS]
    before = [dict(each) for each in changed]

    def add(file: str, blocks: list[str]) -> None:
        name = ".".join(Path(file).with_suffix("").parts[1:]).removesuffix(".__init__")
        if (ROOT / file).exists():
            module = importlib.import_module(name)
        else:
            module = ModuleType(name)
            module.__package__ = name.rpartition(".")[0]
            monkeypatch.setitem(sys.modules, name, module)
        for block in blocks:
            exec(compile(block, file, "exec"), vars(module))

    yield add
    for each, content in zip(changed, before, strict=True):
        for key in each.keys() - content.keys():
            del each[key]


def test_recipes_touch_no_more_files_than_they_promise():
    counts = {title: len(recipe(title)[0]) for title in ("A block design", "An objective", "A technique")}
    assert counts == {"A block design": 3, "An objective": 1, "A technique": 2}


def test_block_design_of_the_recipe_works_and_costs_what_it_says(added, monkeypatch: pytest.MonkeyPatch):
    files, text = recipe("A block design")
    added("src/dit_hf/blocks.py", files["src/dit_hf/blocks.py"])
    assert not files["src/dit_hf/configuration_dit.py"]  # which only gets a name
    monkeypatch.setattr(configuration_dit, "BlockType", typing.Literal[*typing.get_args(BlockType), "geglu"])
    flops_file = "src/dit_hf/analysis/flops.py"
    added(flops_file, ["from dit_hf.blocks import GeGlu\n", *files[flops_file]])

    config = DiTConfig.from_name("DiT-XL/2", block_type="geglu")
    assert f"{count_parameters(config):,} and {count_gmacs(config):.3f} G" in text
    with torch.device("meta"):
        assert count_parameters(config) == sum(parameter.numel() for parameter in DiTModel(config).parameters())

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_size": 4, "num_classes": 3}
    model = DiTModel(DiTConfig(**small, block_type="geglu"))
    x, tokens = torch.randn(2, 4, 16), torch.randn(2, 16)
    block = model.blocks[0]
    assert torch.equal(block(x, tokens), x)  # adaLN-Zero: a fresh block is the identity
    layer, weights = block.mlp, {name: weight.double() for name, weight in block.mlp.named_parameters()}

    def linear(name: str, z: torch.Tensor) -> torch.Tensor:
        return z @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    gate = linear("gate", x.double())
    expected = linear("down", gate * (1 + torch.erf(gate / 2**0.5)) / 2 * linear("up", x.double()))
    assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)  # float32 against float64
    assert count_macs(DiTConfig(**small, block_type="geglu")).linears == 2 * 4 * (4 * 16 * 16 + 3 * 16 * 64)


def test_objective_of_the_recipe_measures_the_velocity_of_its_prediction(added):
    files, _ = recipe("An objective")
    added("src/dit_hf/diffusion/objectives.py", files["src/dit_hf/diffusion/objectives.py"])
    objective = OBJECTIVES["sample_v"]()
    generator = torch.Generator().manual_seed(0)
    x_0, noise, prediction = torch.randn(3, 4, 4, 8, 8, generator=generator)
    timestep = torch.tensor([0, 100, 500, 999])
    losses = objective(lambda *_: prediction, x_0, timestep=timestep, noise=noise, class_labels=None)

    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timestep]
    a, s = alpha_bar.sqrt().reshape(-1, 1, 1, 1), (1 - alpha_bar).sqrt().reshape(-1, 1, 1, 1)
    x_t = a * x_0.double() + s * noise.double()
    velocity, predicted = a * noise.double() - s * x_0.double(), (a * x_t - prediction.double()) / s
    assert_close(losses["loss"].double(), ((velocity - predicted) ** 2).mean((1, 2, 3)), rtol=1e-4, atol=0)
    assert objective.scheduler_config()["prediction_type"] == "sample"
    assert parse_settings(["--objective", "sample_v"]).objective == "sample_v"


def test_technique_of_the_recipe_weighs_as_its_paper_says_and_is_a_setting(added):
    files, _ = recipe("A technique")
    first, second = files
    added(first, files[first])
    added(second, ["from dit_hf.training.techniques.p2 import P2\n", *files[second]])
    objective = OBJECTIVES["epsilon"]()
    timestep = torch.tensor([0, 100, 500, 999])
    x_0 = torch.zeros(4, 4, 2, 2)
    draws, batch = Draws(timestep, x_0, None), LatentBatch(x_0, None, [(0, k) for k in range(4)], (0, 4))

    def compute() -> dict[str, torch.Tensor]:
        return {"loss": torch.ones(4), "mse": torch.ones(4)}

    settings = parse_settings(["--p2_gamma", "0.5", "--objective", "epsilon"])
    technique = TECHNIQUES["p2"].build(settings.techniques["p2"], objective, None)
    losses = Techniques({"p2": technique}).apply(compute, torch.nn.Identity(), batch, draws)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[timestep]
    assert_close(losses["loss"].double(), (1 / (1 + alpha_bar / (1 - alpha_bar))) ** 0.5, rtol=1e-5, atol=0)
    assert card_names()["p2_gamma"] == "gamma of P2 weighting"
    assert TECHNIQUES["p2"].build(parse_settings([]).techniques["p2"], objective, None) is None
    with pytest.raises(ValueError, match="p2_gamma=1.0 does not fit SampleLoss: leave it out, or train with epsilon"):
        TECHNIQUES["p2"](OBJECTIVES["sample"](), 1.0)
