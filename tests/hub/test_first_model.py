"""docs/first_model.md, from the drawings to the model on a local Hub, as printed but for a tiny model of two steps."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dit_hf.cli import app
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first_model.md"
TINY = ["--hidden_size", "32", "--num_hidden_layers", "1", "--num_attention_heads", "2", "--lr_warmup_steps", "1"]
FEW = ["--max_train_steps", "2", "--validation_steps", "2", "--checkpointing_steps", "2", "--ema_decay", "0"]
FEW_STEPS = ("num_inference_steps=20", "num_inference_steps=2")


@pytest.mark.slow
def test_page_leads_from_the_drawings_to_a_model_that_is_loaded_by_name(
    hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "bash", "bash", "python", "python", "python"]
    namespace: dict = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text.replace(*FEW_STEPS), str(PAGE), "exec"), namespace)
            continue
        program, command, *arguments = shlex.split(text)
        assert program == "dit-hf"
        if command == "train":
            run(parse_settings([*arguments, *TINY, *FEW, "--report_to", "none"]))
        else:
            result = CliRunner().invoke(app, [command, *arguments, "--num-inference-steps", "2"])
            assert result.exit_code == 0, result.output

    fruit = (tmp_path / "fruit.txt").read_text().splitlines()
    assert len(fruit) == 10
    assert Image.open("data.png").size == (10 * 64, 2 * 64)
    assert Image.open("fruit.png").size == (4 * 64, 3 * 64)
    assert len(re.findall(r"^guidance [12]\.0: \d+ of 50 recognised; ", capsys.readouterr().out, re.MULTILINE)) == 2
    assert hub.repository("user/fruit").private
    assert sorted(namespace["elsewhere"].labels) == sorted(fruit)
    assert Image.open("avocado.png").size == (64, 64)
