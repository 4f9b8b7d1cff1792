"""The Python of docs/publish.md, run as printed on a local Hub."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "publish.md"


@pytest.mark.slow
def test_python_of_the_page_runs_as_printed(hub, pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained(tmp_path / "out" / "my-dit" / "pipeline")  # which the training of the page has made
    namespace: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert hub.repository("user/my-dit").private
    assert not hub.repository("user/our-dit").private
    assert {"main", "v2"} <= set(hub.repository("user/my-dit").refs)
