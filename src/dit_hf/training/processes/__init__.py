"""Processes: starting Accelerate, splitting weights over processes by FSDP2 or DeepSpeed, and signals."""
