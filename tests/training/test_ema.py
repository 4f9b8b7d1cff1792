"""The paper's EMA against its formula in float64."""

import torch

from dit_hf.training.ema import make_ema


def test_decay_is_constant_from_the_first_step_on():
    model = torch.nn.Linear(3, 2)
    expected = model.weight.detach().double()
    ema = make_ema(model, 0.9)
    for step in range(5):
        with torch.no_grad():
            model.weight.add_(step + 1.0)
        ema.update_parameters(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
        torch.testing.assert_close(ema.module.weight.double(), expected, rtol=1e-6, atol=1e-6)


def test_average_starts_as_a_frozen_copy_in_evaluation_mode():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout())
    ema = make_ema(model, 0.9999)
    torch.testing.assert_close(dict(ema.module.named_parameters()), dict(model.named_parameters()))
    assert not ema.module.training
    assert model.training
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
