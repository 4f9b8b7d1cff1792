"""The paper's EMA against its formula in float64."""

import torch

from dit_hf.training.ema import EMA, make_ema


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


def test_several_averages_are_each_what_it_would_be_alone():
    model = torch.nn.Linear(3, 2)
    both, alone = EMA(model, [0.9, 0.5]), {decay: EMA(model, [decay]) for decay in (0.9, 0.5)}
    with torch.no_grad():
        model.weight.add_(1.0)
    for ema in (both, *alone.values()):
        ema.update(model)
    for decay, ema in alone.items():
        torch.testing.assert_close(both.gather(decay, model), ema.gather(decay, model), rtol=0, atol=0)
    assert not torch.equal(both.gather(0.9, model)["weight"], both.gather(0.5, model)["weight"])
