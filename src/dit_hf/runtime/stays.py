"""What the parts of an exported pipeline have in common: they stay where and as they were exported."""

from typing import Any

import torch

from .record import Record


def check_placement(device_map: Any) -> None:
    """Refuse a device other than the CPU.

    Raises:
        ValueError: If another one is asked for.
    """
    if device_map is not None and str(device_map) != "cpu":
        raise ValueError(f"device_map={device_map!r}: an exported pipeline computes on the CPU, leave it out")


class StaysAsExported:
    """A part without weights that torch sees: it has a device and a dtype for good, and is not saved again."""

    record: Record
    computes_in: str

    def keep(self: Any, record: Record, computes_in: str) -> None:
        """Take over what the part was exported as; the constructor calls this method.

        Args:
            record: What the part was exported as.
            computes_in: Number format that its graphs compute in.
        """
        self.record, self.computes_in = record, computes_in
        self.register_buffer("digest", record.digest(computes_in))  # tells images of one export from another's

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors that come and go."""
        # int8 is no dtype for them: only the products inside are of whole numbers
        return torch.float32 if self.computes_in == "int8" else getattr(torch, self.computes_in)

    @property
    def device(self) -> torch.device:
        """The device of the tensors that come and go."""
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse another device or dtype.

        Raises:
            ValueError: If the part would have to move or to change.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type != "cpu":
            raise ValueError(f"an exported pipeline computes on the CPU, and cannot be moved to {device}")
        if dtype is not None and dtype != self.dtype:
            raise ValueError(f"an exported pipeline stays in {self.computes_in}: load it with dtype={dtype} instead")
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to write, as the graphs are files already.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "this pipeline is an export, which is not saved again: copy its folder, or export the original anew"
        )
