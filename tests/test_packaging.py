"""The wheel and the sdist, built and installed outside the repository.

Nothing is fetched: the build uses the setuptools of the environment that runs the tests, and the installed package
finds torch and the others in that environment's site-packages.
"""

import email
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".*", "__pycache__", "*.egg-info")
WRITTEN = ("build", "dist", "out", "demo")  # folders of the root that commands write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from that sdist."""
    tree = tmp_path_factory.mktemp("tree") / "dit-hf"
    shutil.copytree(
        ROOT,
        tree,
        ignore=lambda folder, names: shutil.ignore_patterns(*LEFT_OUT, *(WRITTEN if Path(folder) == ROOT else ()))(
            folder, names
        ),
    )
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)])
    return out


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a virtual environment that holds the wheel and sees this environment's dependencies."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", str(venv)])
    wheel = next(dist.glob("*.whl"))
    # A plain line in a .pth file adds the folder but not its own .pth files, so an editable dit_hf stays unseen.
    (venv / site_packages(venv) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(venv / "bin" / "python")]
    run([*pip, "install", "-qq", "--no-deps", "--no-index", str(wheel)])
    return venv


def run(command: list[str], cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def site_packages(venv: Path) -> str:
    return f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def test_wheel_holds_the_code_and_nothing_else(dist: Path):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    source = ROOT / "src"
    code = {str(path.relative_to(source)) for path in (source / "dit_hf").rglob("*.py")}
    assert set(names) == code | {"dit_hf/py.typed"}


def test_wheel_says_what_it_is_and_needs(dist: Path):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
        assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
    needs = [line.replace(" ", "") for line in metadata.get_all("Requires-Dist")]
    assert metadata["Name"] == "dit-hf"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.10" in needs
    assert "pillow<13,>=11.0" in needs
    assert {"train", "lora", "dev", "all"} <= set(metadata.get_all("Provides-Extra"))


def test_sdist_holds_text_and_no_assets(dist: Path):
    archive = next(dist.glob("*.tar.gz"))
    with tarfile.open(archive) as sdist:
        names = [name.split("/", 1)[1] for name in sdist.getnames() if "/" in name]
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "requirements.txt", "Makefile"} <= set(names)
    assert not [name for name in names if name.startswith(("examples/assets", "tests/golden", "out", ".venv"))]
    assert archive.stat().st_size < 2e6


def test_installed_package_works_outside_the_repository(installed: Path, tmp_path: Path):
    python = str(installed / "bin" / "python")
    file = run([python, "-c", "import dit_hf; print(dit_hf.__file__)"], cwd=tmp_path).strip()
    assert Path(file).is_relative_to(installed)
    version = run([python, "-c", "import importlib.metadata as m; print(m.version('dit-hf'))"], cwd=tmp_path).strip()
    assert run([str(installed / "bin" / "dit-hf"), "--version"], cwd=tmp_path).strip() == f"dit-hf {version}"


def test_shipped_model_beside_the_wheel_is_one_call(installed: Path, tmp_path: Path):
    python = str(installed / "bin" / "python")
    missing = "import dit_hf\ntry: dit_hf.shipped_model()\nexcept FileNotFoundError as error: print(error)"
    assert "install the folder ./examples/assets by pip" in run([python, "-c", missing], cwd=tmp_path)
    assets = tmp_path / "assets"
    shutil.copytree(ROOT / "examples" / "assets", assets, ignore=shutil.ignore_patterns("data", "build", "*.egg-info"))
    build = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path / "dist"),
        str(assets),
    ]
    run(build)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "-qq", "--no-deps", "--no-index", str(next((tmp_path / "dist").glob("*.whl")))])
    code = """
import dit_hf
pipeline = dit_hf.DiTPipeline.from_pretrained(dit_hf.shipped_model())
pipeline(["frog"], num_inference_steps=1)
print(dit_hf.shipped_model())
"""
    folder = Path(run([python, "-c", code], cwd=tmp_path).strip().splitlines()[-1])
    assert folder.is_relative_to(installed)
    for weights in ("transformer/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        shipped = ROOT / "examples" / "assets" / "dit-emoji" / weights
        assert (folder / weights).read_bytes() == shipped.read_bytes()


def test_installed_package_has_every_room(installed: Path, tmp_path: Path):
    files = sorted((ROOT / "src" / "dit_hf").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT / "src").with_suffix("").parts) for file in files]
    code = "; ".join(f"import {name.removesuffix('.__init__')}" for name in names)
    run([str(installed / "bin" / "python"), "-c", code], cwd=tmp_path)
