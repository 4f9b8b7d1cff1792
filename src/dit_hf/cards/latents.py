"""The card of a data set of latents: what they were made of, and a snippet that reads them."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from .page import CARD

TEXT = """{front}

# Latents of {info.source}

Mean and log-variance of the posterior of the VAE {info.vae} for {report[num_images]} images of {info.resolution}
px{too}, as {info.dtype}, made with dit-hf. To train on them, pass the name of this data set as `--dataset_name`.
`latents.json` records the VAE, the images and their preparation.

```python
import numpy as np
from dit_hf.vae import vae_shrink_factor
from datasets import load_dataset

row = next(iter(load_dataset("data set", split="{split}", streaming=True)))
{snippet}
```

Storing changed the scaled means by {report[latent_error_rms]:.2g} (root mean square), at most
{report[latent_error_max]:.2g}.
"""
SNIPPETS = {
    "float16": 'moments = np.frombuffer(row["moments"], np.float16).reshape({shape})  # mean, then log-variance',
    "int8": 'low, step = np.frombuffer(row["moments"], np.float32, {double}).reshape(2, {channels}, 1, 1)\n'
    'levels = np.frombuffer(row["moments"], np.uint8, offset=4 * {double}).reshape({shape})\n'
    "moments = low + step * levels  # mean, then log-variance",
}


def write_latents_card(folder: Path, info: Any, report: dict[str, Any], split: str) -> None:
    """Write the card of a data set of latents.

    Args:
        folder: Folder of the data set.
        info: Record that is stored with the latents, a `LatentsInfo`.
        report: Report of the extraction.
        split: Split that the shards are named after.
    """
    front = DatasetCardData(tags=["latents", "dit", "dit-hf"], task_categories=["unconditional-image-generation"])
    channels = info.shape[0]
    snippet = SNIPPETS[info.dtype].format(shape=info.shape, channels=channels, double=2 * channels)
    known = {"info": info, "report": report, "split": split, "snippet": snippet}
    known |= {"too": ", and for their mirror images" if info.mirrored else "", "front": f"---\n{front.to_yaml()}\n---"}
    text = TEXT.format(**known)
    DatasetCard(text).save(folder / CARD)
