"""Train a small `AutoencoderKL` on the embedded emoji, measure it on emoji that it was not trained on, and save it.

    python examples/train_vae.py --output_dir out/vae-emoji

The loss is L1 + 2 MSE + 1e-6 KL in pixels. The saved weights are an exponential moving average (EMA).
`scaling_factor` is measured so that the latents that a DiT is trained on have unit standard deviation (Rombach et al.
2022, D.1).

Legend: N images, B batch, S side of an image.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, as in train_dit.py

import numpy as np
import torch
from datasets import Image, load_dataset
from diffusers import AutoencoderKL
from PIL import Image as PILImage
from torch import Tensor
from tqdm import tqdm
from transformers import HfArgumentParser

from dit_hf.data.preparation import resize_and_crop
from dit_hf.data.rows import encoded_bytes
from dit_hf.images import decode_image

ASSETS = Path(__file__).parent / "assets"


def setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class VAESettings:
    """Settings of the small VAE and its training."""

    output_dir: str = setting("out/vae-emoji", "Folder that the VAE is written to.")
    dataset_name: str = setting(str(ASSETS / "emoji"), "Data set with the splits train and validation.")
    resolution: int = setting(64, "Side of the images, in pixels.")
    latent_channels: int = setting(4, "Number of channels of the latents.")
    block_out_channels: list[int] = field(
        default_factory=lambda: [16, 32, 64],
        metadata={"help": "Channels of each block. Each block after the first halves the image."},
    )
    train_batch_size: int = setting(8, "Number of images of a batch.")
    max_train_steps: int = setting(5000, "Number of training steps.")
    learning_rate: float = setting(
        3e-3, "Highest learning rate of AdamW. It rises in warmup_steps and then decays as a cosine."
    )
    warmup_steps: int = setting(100, "Number of steps in which the learning rate rises from 0.")
    kl_weight: float = setting(1e-6, "Weight of the KL divergence in the loss.")
    ema_decay: float = setting(0.99, "Weight of the old average in each step of the EMA.")
    validation_steps: int = setting(1250, "Number of steps between two measurements on the validation split.")
    seed: int = setting(0, "Seed of the weights and of the batches.")


def load_split(settings: VAESettings, split: str) -> Tensor:
    """Return all prepared images of a split, as uint8 (N, 3, S, S)."""
    rows = load_dataset(settings.dataset_name, split=split, streaming=True).cast_column("image", Image(decode=False))
    images = [resize_and_crop(decode_image(encoded_bytes(row["image"])), settings.resolution) for row in rows]
    return torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2)


def to_unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def build_vae(settings: VAESettings) -> AutoencoderKL:
    depth = len(settings.block_out_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=tuple(settings.block_out_channels),
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=settings.resolution,
    ).to(memory_format=torch.channels_last)


def draw_batch(images: Tensor, batch_size: int, generator: torch.Generator, max_shift: int = 4) -> Tensor:
    """Draw random images. Half of the batches are mirrored, and each is shifted by a few pixels on white."""
    batch = images[torch.randint(len(images), (batch_size,), generator=generator)]  # (B, 3, S, S)
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(-1)
    padded = torch.nn.functional.pad(batch, (max_shift,) * 4, value=255)
    top, left = torch.randint(2 * max_shift + 1, (2,), generator=generator).tolist()
    size = batch.shape[-1]
    return to_unit(padded[..., top : top + size, left : left + size])


def vae_loss(vae: AutoencoderKL, x: Tensor, kl_weight: float) -> Tensor:
    posterior = vae.encode(x).latent_dist
    error = vae.decode(posterior.sample()).sample - x
    return error.abs().mean() + 2 * error.square().mean() + kl_weight * posterior.kl().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Reconstruct images from the mean of the posterior, as uint8."""
    batches = [vae.decode(vae.encode(to_unit(x)).latent_dist.mode()).sample for x in images.split(32)]
    return (torch.cat(batches) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the mean over images of the peak signal-to-noise ratio in dB, of pixels in 0..255."""
    mse = (a.double() - b.double()).square().mean(dim=(1, 2, 3)).clamp(min=1e-2)
    return (10 * torch.log10(255**2 / mse)).mean().item()


def pca_reconstruction(train: Tensor, images: Tensor, downsampling: int, num_components: int) -> Tensor:
    """Reconstruct images by a linear code of the same rate: `num_components` numbers for each square of pixels.

    Args:
        train: Images that the principal components are computed from, (N, 3, S, S) uint8.
        images: Images to reconstruct.
        downsampling: Side of a square, in pixels.
        num_components: Number of principal components that are kept.
    """

    def to_patches(x: Tensor) -> Tensor:
        return torch.nn.functional.unfold(x.double(), downsampling, stride=downsampling).transpose(1, 2)

    patches = to_patches(train[::4])
    mean = patches.mean(dim=(0, 1))
    centred = (patches - mean).flatten(0, 1)
    basis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -num_components:]
    rebuilt = (to_patches(images) - mean) @ basis @ basis.T + mean
    folded = torch.nn.functional.fold(rebuilt.transpose(1, 2), images.shape[-2:], downsampling, stride=downsampling)
    return folded.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL, images: Tensor) -> float:
    """Return 1 / standard deviation of the latents of the training images."""
    latents = torch.cat([vae.encode(to_unit(x)).latent_dist.mode() for x in images.split(32)])
    return 1 / latents.std().item()


def save_comparison(images: Tensor, rebuilt: Tensor, path: Path, count: int = 40) -> None:
    """Save a picture of originals above their reconstructions, ten in a row."""
    chosen = torch.linspace(0, len(images) - 1, count).long()
    pairs = torch.cat([images[chosen], rebuilt[chosen]], dim=2)  # (count, 3, 2S, S)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in pairs.split(10)], dim=1)
    PILImage.fromarray(rows.permute(1, 2, 0).numpy()).save(path)


def main() -> None:
    (settings,) = HfArgumentParser(VAESettings).parse_args_into_dataclasses()
    output_dir = Path(settings.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    train, validation = load_split(settings, "train"), load_split(settings, "validation")

    vae = build_vae(settings)
    ema = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)

    def lr_scale(step: int) -> float:
        progress = step / settings.max_train_steps
        return min(1, (step + 1) / settings.warmup_steps) * 0.5 * (1 + math.cos(math.pi * progress))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_scale)
    start = time.perf_counter()
    progress = tqdm(range(1, settings.max_train_steps + 1), desc="VAE", mininterval=5)
    for step in progress:
        x = draw_batch(train, settings.train_batch_size, generator).to(memory_format=torch.channels_last)
        loss = vae_loss(vae, x, settings.kl_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        ema.update_parameters(vae)
        if step % settings.validation_steps == 0 or step == settings.max_train_steps:
            rebuilt = reconstruct(ema.module, validation)
            save_comparison(validation, rebuilt, output_dir / "reconstructions.png")
            tqdm.write(f"step {step}: loss {loss.item():.4f}, validation PSNR {psnr(rebuilt, validation):.2f} dB")
            vae_to_save = ema.module
            vae_to_save.register_to_config(scaling_factor=round(measure_scaling_factor(vae_to_save, train), 5))
            vae_to_save.save_pretrained(output_dir)

    downsampling = 2 ** (len(settings.block_out_channels) - 1)
    linear = pca_reconstruction(train, validation, downsampling, settings.latent_channels)
    report = {
        "psnr_validation_db": round(psnr(rebuilt, validation), 2),
        "psnr_patch_pca_db": round(psnr(linear, validation), 2),
        "scaling_factor": ema.module.config.scaling_factor,
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "seconds": round(time.perf_counter() - start),
        "settings": asdict(settings),
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
