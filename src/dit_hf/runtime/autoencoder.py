"""`ExportedVae`: an exported VAE with what `DiTPipeline` asks of an autoencoder of diffusers."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor

from .engine import Run
from .record import Record, choose_dtype, load_graphs, read_record
from .stays import StaysAsExported, check_placement


class ExportedVae(StaysAsExported, ModelMixin, ConfigMixin):
    """An exported VAE: `encode` gives the mean of the latents, `decode` gives images.

    Args:
        config: Fields of the configuration of the VAE that was exported.
        graphs: The graphs "decode" and "encode".
        record: What the VAE was exported as.
        dtype: Number format that the graphs compute in.
    """

    config_name = "config.json"

    def __init__(self, config: dict[str, Any], graphs: dict[str, Run], record: Record, dtype: str) -> None:
        super().__init__()
        self.register_to_config(**config)
        self._graphs = graphs
        self.keep(record, dtype)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, torch_dtype: torch.dtype | None = None, device_map: Any = None, **kwargs: Any
    ) -> "ExportedVae":
        """Load the folder `vae` of an exported pipeline.

        Args:
            source: Folder.
            torch_dtype: Number format to compute in; None for what it was exported in.
            device_map: Refused, as the graphs run on the CPU.
            **kwargs: What diffusers passes to every model, without a meaning here.

        Raises:
            ImportError: If the runtime is not installed.
            ValueError: If the folder or the processor cannot do what is asked.
        """
        folder = Path(source)
        check_placement(device_map)
        record = read_record(folder)
        computes_in = choose_dtype(record, torch_dtype)
        graphs = load_graphs(folder, record, dict.fromkeys(("decode", "encode"), computes_in))
        config = {name: value for name, value in cls.load_config(folder).items() if not name.startswith("_")}
        return cls(config, graphs, record, computes_in).eval()

    def decode(self, latents: Tensor) -> DecoderOutput:
        """Decode latents (B, C, h, w) to images (B, 3, height, width)."""
        (images,) = self._graphs["decode"](latents.to(self.record.tensor_dtype))
        return DecoderOutput(sample=images)

    def encode(self, images: Tensor) -> AutoencoderTinyOutput:
        """Encode images (B, 3, height, width) to the mean of their latents (B, C, h, w)."""
        (latents,) = self._graphs["encode"](images.to(self.record.tensor_dtype))
        return AutoencoderTinyOutput(latents=latents)
