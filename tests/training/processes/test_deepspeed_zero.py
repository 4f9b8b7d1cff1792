"""What is ours of ZeRO and needs no DeepSpeed; the rest is in test_processes.py."""

import math

import torch

from dit_hf.training.processes.deepspeed_zero import poison


def test_loss_that_is_not_finite_gets_a_gradient_that_is_not_either():
    for value in (math.inf, -math.inf, math.nan):
        loss = torch.tensor(value, requires_grad=True)  # whose own gradient is 1
        poison(loss).backward()
        assert loss.grad.isnan()


def test_finite_loss_keeps_its_value_and_gradient():
    loss = torch.tensor(0.1, requires_grad=True)
    assert poison(loss) == loss
    poison(loss).backward()
    assert loss.grad == 1
