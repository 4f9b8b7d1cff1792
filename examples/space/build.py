"""Write this folder's files, a Space as `dit-hf push-space` makes it: python examples/space/build.py."""

from pathlib import Path

from dit_hf.demo.space import space_texts

HERE = Path(__file__).parent

for name, text in space_texts("examples/assets/dit-emoji", "dit-emoji").items():
    (HERE / name).write_text(text, encoding="utf-8")
