"""A Space that draws with a Diffusion Transformer: the page of `dit-hf demo`."""

import contextlib
import os

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  ZeroGPU lends a GPU to the functions of the page; it has to come before torch

import torch

from dit_hf import DiTPipeline
from dit_hf.demo.limits import Limits
from dit_hf.demo.page import build_page
from dit_hf.demo.server import serve

MODEL = os.environ.get("MODEL", "examples/assets/dit-emoji")
LIMITS = Limits(max_seconds=60)

pipeline = DiTPipeline.from_pretrained(MODEL).to("cuda" if torch.cuda.is_available() else "cpu")
page = build_page(pipeline, MODEL, LIMITS)

if __name__ == "__main__":
    serve(page, LIMITS)
