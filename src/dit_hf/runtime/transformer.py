"""`ExportedDiT`: an exported DiT with what `DiTPipeline` asks of a `DiTModel`.

Legend: B samples, C latent channels, H and W latent height and width.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration_dit import DiTConfig
from ..embeddings import DiTPositions
from ..modeling_dit import DiTConditioning, DiTModel, DiTModelOutput
from .engine import Run
from .graphs import example_condition_inputs, in_float32, tensors_of, with_tensors
from .record import Record, choose_dtype, load_graphs, read_record
from .stays import StaysAsExported, check_placement

OWN_WEIGHTS = "positions.safetensors"  # the model's weights outside of its layers, of which the positions are made


class Skeleton(DiTModel):
    """A DiT without memory for its layers, which still makes positions: on the CPU, where exported graphs compute."""

    _place = torch.device("meta")  # that of its layers, until `skeleton_of` has used them


def skeleton_of(config: DiTConfig, own_weights: dict[str, Tensor]) -> tuple[DiTModel, DiTConditioning]:
    """Build a model without memory for its layers, and the form of its conditionings.

    Args:
        config: Configuration of the model.
        own_weights: Weights of the model outside of its layers.
    """
    with torch.device("meta"):
        model = Skeleton(config).eval()
    conditioning = model.condition(*example_condition_inputs(config, "meta"))
    model._place = torch.device("cpu")  # also of a rotary embedding, which has no weight with a place of its own
    model.load_state_dict(own_weights, strict=False, assign=True)
    return model, conditioning


class ExportedDiT(StaysAsExported, PreTrainedModel):
    """An exported DiT: it takes and returns what `DiTModel` does, and computes it in another runtime.

    It has no weights that torch sees, so that it cannot be trained, adapted, cached or moved to another device.

    Args:
        config: Configuration of the exported model.
        graphs: The graphs "condition" and "denoise".
        record: What the model was exported as.
        dtype: Number format that the graphs compute in.
        own_weights: Weights of the model outside of its layers.
    """

    config_class = DiTConfig
    main_input_name = "hidden_states"

    def __init__(
        self, config: DiTConfig, graphs: dict[str, Run], record: Record, dtype: str, own_weights: dict[str, Tensor]
    ) -> None:
        super().__init__(config)
        skeleton, self._form = skeleton_of(config, own_weights)
        self._make_positions = skeleton.positions  # the method alone: its module would count as a part of this one
        self._trained_positions = skeleton.positions()
        self._graphs = graphs
        self.keep(record, dtype)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, dtype: torch.dtype | None = None, device_map: Any = None, **kwargs: Any
    ) -> "ExportedDiT":
        """Load the folder `transformer` of an exported pipeline.

        Args:
            source: Folder.
            dtype: Number format to compute in; None for what it was exported in.
            device_map: Refused, as the graphs run on the CPU.
            **kwargs: What diffusers passes to every model, without a meaning here.

        Raises:
            ImportError: If the runtime is not installed.
            ValueError: If the folder or the processor cannot do what is asked.
        """
        folder = Path(source)
        check_placement(device_map)
        record = read_record(folder)
        computes_in = choose_dtype(record, dtype)
        config = DiTConfig.from_pretrained(folder)
        graphs = load_graphs(folder, record, {"condition": record.exact_dtype, "denoise": computes_in})
        return cls(config, graphs, record, computes_in, load_file(folder / OWN_WEIGHTS)).eval()

    @property
    def blocks(self) -> Any:
        """Refuse to show layers, which caches and adapters ask for.

        Raises:
            ValueError: Always.
        """
        raise ValueError("an exported pipeline has no layers to change: caches and adapters need the original pipeline")

    y_embedder = blocks

    def condition(
        self, timestep: Tensor | float, class_labels: Tensor | None = None, drop_labels: Tensor | None = None
    ) -> DiTConditioning:
        """Compute all that depends on the timestep and the label only; see `DiTModel.condition`."""
        t = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)  # (B,)
        inputs = [t]
        if class_labels is not None:
            if drop_labels is not None:
                class_labels = class_labels.masked_fill(drop_labels, self.config.null_class_id)
            inputs = list(torch.broadcast_tensors(t, class_labels.long()))  # (B,), (B,)
        return with_tensors(self._form, self._graphs["condition"](*inputs))

    def positions(
        self,
        height: int | None = None,
        width: int | None = None,
        policy: Literal["extend", "interpolate"] | None = None,
    ) -> DiTPositions:
        """Compute all that depends on the places of the patches only; see `DiTModel.positions`."""
        return self._make_positions(height, width, policy)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float | None = None,
        class_labels: Tensor | None = None,
        *,
        drop_labels: Tensor | None = None,
        conditioning: DiTConditioning | None = None,
        positions: DiTPositions | None = None,
        return_dict: bool = True,
    ) -> DiTModelOutput | tuple[Tensor]:
        """Predict the noise and, if it is learned, its variance; see `DiTModel.forward`."""
        if conditioning is None:
            if timestep is None:
                raise ValueError("timestep=None: pass t in 0..999, or conditioning=model.condition(...)")
            conditioning = self.condition(timestep, class_labels, drop_labels)
        batch = hidden_states.shape[0]
        positions = self._trained_positions if positions is None else positions
        rows = [each.expand(batch, *each.shape[1:]) for each in tensors_of(conditioning)]  # (B, ...)
        (sample,) = self._graphs["denoise"](
            hidden_states.to(self.record.tensor_dtype), *rows, *tensors_of(in_float32(positions))
        )
        return DiTModelOutput(sample=sample) if return_dict else (sample,)  # (B, out_channels, H, W)
