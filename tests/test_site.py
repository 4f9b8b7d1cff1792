"""The site of the documents: it builds without a warning, and every public name has an entry in the reference."""

import importlib
import os
import re
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile
from warm_process import SOURCE, run_warm

ROOT = Path(__file__).parents[1]

# The packages whose `__all__` is the public interface. Read here once more, and not from docs/conf.py.
PUBLIC = (
    "dit_hf",
    "dit_hf.analysis",
    "dit_hf.conversion",
    "dit_hf.diffusion",
    "dit_hf.evaluation",
    "dit_hf.finetuning",
    "dit_hf.generation",
    "dit_hf.training.settings",
    "dit_hf.training.techniques",
)
# Names of packages without an `__all__`, one of each.
OTHERS = {
    "dit_hf.caches.CACHES",
    "dit_hf.hub.push.push_folder",
    "dit_hf.hub.verify.verify_snapshot",
    "dit_hf.sampling.guidance.GUIDERS",
    "dit_hf.sampling.schedulers.SCHEDULERS",
    "dit_hf.training.loop.train_steps",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make docs` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "doctrees"), "-c", "docs"]
    code = "import runpy; runpy.run_module('sphinx', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    result = run_warm(code, *options, ".", str(folder / "html"), cwd=ROOT, environment=environment)
    assert result.returncode == 0, result.stderr
    return folder / "html"


@pytest.mark.slow
def test_every_public_name_has_an_entry(site: Path):
    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, target: target)
    entries = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    names = {f"{package}.{name}" for package in PUBLIC for name in importlib.import_module(package).__all__}
    assert names - entries == set()
    assert entries >= OTHERS


@pytest.mark.slow
def test_pages_arguments_and_options_can_be_searched(site: Path):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for word in ("guidance_interval_unit", "tinca", "peebl"):  # an argument, a word of a page, a stem
        assert re.search(rf'\b{word}"?:', index), word
    commands = (site / "docs/reference/commands.html").read_text(encoding="utf-8")
    assert "--guidance-interval" in commands


@pytest.mark.slow
def test_site_opens_at_the_index_which_leads_to_every_page(site: Path):
    assert "docs/index.html" in (site / "index.html").read_text(encoding="utf-8")
    index = (site / "docs/index.html").read_text(encoding="utf-8")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {page for page in pages if f'href="{page}.html"' not in index} == set()
