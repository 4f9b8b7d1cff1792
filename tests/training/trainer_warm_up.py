"""What the first training of a process does once, done by the process that the trainers are forked from.

It makes the code that a saved pipeline carries, saves and loads a pipeline, and draws a loss curve.
Each trainer would otherwise spend a second on it. Nothing here touches Accelerate, which keeps its state in a process.
"""

import json
import tempfile
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.training.reporting.loss_curve import plot_losses

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    model = DiTModel(DiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, sample_size=8))
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, latent_channels=4, mid_block_add_attention=False)
    DiTPipeline(model, vae, DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    DiTPipeline.from_pretrained(folder)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "mse": 1.0, "vb": 1.0}) + "\n")
    plot_losses(folder / "metrics.jsonl", folder / "loss.png")
