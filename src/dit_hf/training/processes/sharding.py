"""What FSDP2 and DeepSpeed need that Accelerate does not do by itself: CPUs, dtypes between blocks, and refusals."""

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers.integrations import unset_hf_deepspeed_config


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Let Accelerate split the model by FSDP2 on CPUs too, as torch can over gloo; Accelerate looks for GPUs first."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
    set_distributed_type(accelerator, DistributedType.FSDP)


def keep_float32_between_blocks(accelerator: Accelerator) -> None:
    """Let FSDP2 cast the weights alone to half precision.

    Accelerate would have FSDP2 cast the inputs of each block as well (the residual stream and the timesteps of flow
    matching), and reduce the gradients in half precision.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if accelerator.mixed_precision in dtypes:
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtypes[accelerator.mixed_precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def set_distributed_type(accelerator: Accelerator, kind: DistributedType) -> None:
    """Let Accelerate prepare models for a kind of parallelism, in both places where it keeps the kind."""
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = kind


def start_zero(accelerator: Accelerator, *, max_grad_norm: float | None, torch_compile: bool) -> None:
    """Let Accelerate use DeepSpeed on CPUs too, and refuse a configuration that changes the steps or was never tried.

    Args:
        accelerator: Accelerator, made with the launcher's configuration.
        max_grad_norm: Norm that the settings clip gradients to.
        torch_compile: Whether the settings compile the model, which is not supported with DeepSpeed.

    Raises:
        ValueError: If the launcher's configuration contradicts the settings, or is not supported.
    """
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        plugin = DeepSpeedPlugin()  # from the launcher's environment
        plugin.set_mixed_precision(accelerator.mixed_precision)
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins = plugin
        set_distributed_type(accelerator, DistributedType.DEEPSPEED)
    unset_hf_deepspeed_config()  # with it, transformers would split every model that it loads
    plugin = accelerator.deepspeed_plugin
    refused = {
        f"zero_stage={plugin.zero_stage}": plugin.zero_stage not in (2, 3),
        "offload": plugin.hf_ds_config.is_offload(),
        "fp16": accelerator.mixed_precision == "fp16",
        "torch_compile": torch_compile,
    }
    for option in (name for name, is_set in refused.items() if is_set):
        raise ValueError(
            f"DeepSpeed with {option} is not supported: launch as examples/accelerate/deepspeed_zero2.yaml"
        )
    if plugin.gradient_clipping not in ("auto", max_grad_norm):
        raise ValueError(
            f"the launcher sets gradient_clipping={plugin.gradient_clipping}, the settings max_grad_norm="
            f"{max_grad_norm}: set it in one place"
        )


def splits_weights(accelerator: Accelerator) -> bool:
    """Return whether Accelerate splits a model over the processes."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return accelerator.deepspeed_plugin.zero_stage == 3
    return accelerator.distributed_type == DistributedType.FSDP
