"""The processes of a training: how they start, how they share a model by FSDP2 or DeepSpeed, and what stops them."""
