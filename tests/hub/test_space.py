"""A Space of the demo on a local Hub: what arrives, and that it runs; the one of the examples is the same."""

import ast
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi
from warm_process import run_warm

from dit_hf.demo.space import push_space, space_texts
from dit_hf.hub.errors import HubError

ROOT = Path(__file__).parents[2]


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


def test_space_arrives_private_in_one_commit_with_package_and_model(hub, saved, capsys):
    push_space(str(saved), "user/draw")
    space = hub.repository("user/draw", "spaces")
    assert space.private
    assert len([*space.history("main")]) == 2  # the second is the empty first one
    files = space.files()
    package = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/dit_hf").rglob("*.py")}
    assert package | {"app.py", "README.md", "requirements.txt", "model/model_index.json"} <= files.keys()
    assert 'os.environ.get("MODEL", "model")' in files["app.py"].decode()
    assert "(private)" in capsys.readouterr().err


@pytest.mark.slow
def test_space_runs_from_its_own_files_alone(hub, saved, tmp_path: Path):
    push_space(str(saved), "user/draw")
    for name, content in hub.repository("user/draw", "spaces").files().items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    program = "import app; from gradio_client import Client; app.serve(app.page, app.LIMITS, prevent_thread_lock=True);"
    program += (
        "print(Client(app.page.local_url, verbose=False).predict(1, 1, 2, 2, 'DDIMScheduler', 0, api_name='/draw')[0]);"
    )
    program += "import dit_hf; print(dit_hf.__file__); app.page.close()"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = run_warm(program, cwd=tmp_path / "space", environment=environment)
    assert result.returncode == 0, result.stderr
    assert "Drawn: goldfish, seed 0." in result.stdout
    assert str(tmp_path / "space" / "dit_hf") in result.stdout


def test_model_of_the_hub_is_named_and_not_copied(hub):
    HfApi().create_repo("user/dit")
    push_space("user/dit", "user/draw", private=False)
    files = hub.repository("user/draw", "spaces").files()
    assert not any(name.startswith("model/") for name in files)
    assert 'os.environ.get("MODEL", "user/dit")' in files["app.py"].decode()


def test_folder_that_holds_a_secret_is_not_sent(hub, saved):
    (saved / "notes.md").write_text("my token is hf_" + "aB3" * 12)
    with pytest.raises(ValueError, match="nothing was pushed"):
        push_space(str(saved), "user/draw")
    assert ("spaces", "user/draw") not in hub.repositories


def test_public_space_is_refused_unless_it_may_be_public(hub):
    HfApi().create_repo("user/dit")
    push_space("user/dit", "user/draw", private=False)
    with pytest.raises(ValueError, match="is public"):
        push_space("user/dit", "user/draw")


def test_account_of_somebody_else_is_refused(hub):
    HfApi().create_repo("user/dit")
    with pytest.raises(HubError):
        push_space("user/dit", "somebody/draw")


def test_example_of_a_space_is_what_push_space_writes():
    """Run `python examples/space/build.py` after a change of the template or of the pinned versions."""
    for name, text in space_texts("examples/assets/dit-emoji", "dit-emoji").items():
        assert (ROOT / "examples" / "space" / name).read_text(encoding="utf-8") == text, name


def test_front_matter_and_pins_are_those_of_the_requirements():
    """The fields: https://huggingface.co/docs/hub/spaces-config-reference."""
    pinned = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    texts = space_texts("user/dit", "dit")
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", texts["README.md"], re.DOTALL)[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == pinned["gradio"]
    assert len(front["short_description"]) <= 60
    assert front["app_file"] == "app.py"
    required = pins(texts["requirements.txt"])
    assert {"torch", "transformers", "diffusers"} <= required.keys()
    assert {name: pinned[name] for name in required} == required
    ast.parse(texts["app.py"])
