"""The configuration: the paper's sizes, what is refused, and what survives a file."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from dit_hf import DiTConfig
from dit_hf.configuration_dit import PAPER_SIZES


def test_defaults_are_xl_2_at_256_px():
    config = DiTConfig()
    assert config.to_dict() == DiTConfig.from_name("DiT-XL/2").to_dict()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1152, 28, 16)
    assert (config.patch_size, config.sample_size, config.in_channels, config.num_classes) == (2, 32, 4, 1000)
    assert (config.learn_sigma, config.class_dropout_prob, config.mlp_ratio) == (True, 0.1, 4.0)
    assert (config.block_type, config.timestep_freq_shift, config.mlp_norm_eps) == ("adaln_zero", 0.0, 1e-6)
    assert config.model_type == "dit"


def test_the_paper_has_twelve_sizes():
    assert set(PAPER_SIZES) == {f"DiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)}
    for name in PAPER_SIZES:
        assert DiTConfig.from_name(name).patch_size == int(name.split("/")[1])


def test_from_name_takes_overrides():
    config = DiTConfig.from_name("DiT-S/4", sample_size=64, hidden_size=96, num_classes=3)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (12, 96, 6)
    assert (config.patch_size, config.sample_size, config.num_classes) == (4, 64, 3)


@pytest.mark.parametrize("name", ["DiT-XL", "dit-xl/2", "DiT-XL/3", ""])
def test_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"unknown size '{name}'.*DiT-XL/2"):
        DiTConfig.from_name(name)


@pytest.mark.parametrize(("given", "kept"), [(16, 16), ((16, 16), 16), ([8, 16], [8, 16]), ((16, 8), [16, 8])])
def test_sample_size_is_an_int_or_a_pair_and_survives_the_file(given, kept, tmp_path):
    DiTConfig(sample_size=given).save_pretrained(tmp_path)
    for config in (DiTConfig(sample_size=given), DiTConfig.from_pretrained(tmp_path)):
        assert config.sample_size == kept
        height, width = kept if isinstance(kept, list) else (kept, kept)
        assert config.sample_height_width == (height, width)
        assert config.grid_height_width == (height // 2, width // 2)


def test_every_field_survives_the_file(tmp_path):
    fields = {
        "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "patch_size": 4, "sample_size": [8, 16],
        "in_channels": 16, "num_classes": 7, "learn_sigma": False, "class_dropout_prob": 0.2, "mlp_ratio": 2.5,
        "block_type": "in_context", "timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-5,
    }  # fmt: skip
    DiTConfig(**fields).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is DiTConfig
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert fields.items() <= json.loads((tmp_path / "config.json").read_text()).items()


def test_out_channels_double_with_the_variance():
    assert DiTConfig(in_channels=3).out_channels == 6
    assert DiTConfig(in_channels=3, learn_sigma=False).out_channels == 3


def test_null_class_is_the_row_after_the_classes():
    assert DiTConfig(num_classes=17).null_class_id == 17


@pytest.mark.parametrize("fields", [{"class_dropout_prob": 0.0}, {"class_dropout_prob": 0}, {"num_classes": 0}])
def test_null_class_is_refused_where_there_is_none(fields):
    config = DiTConfig(**fields)
    assert not config.has_null_class
    name, value = next(iter(fields.items()))
    with pytest.raises(ValueError, match=f"{name}={value}.*no null class.*class_dropout_prob > 0"):
        _ = config.null_class_id


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("hidden_size", 0, "at least 1"),
        ("hidden_size", 1152.0, "whole number"),
        ("hidden_size", 1154, "multiple of 4"),
        ("hidden_size", 1148, "multiple of num_attention_heads=16"),
        ("num_hidden_layers", 0, "at least 1"),
        ("num_attention_heads", -1, "at least 1"),
        ("patch_size", "2", "whole number"),
        ("patch_size", True, "whole number"),
        ("sample_size", 0, "at least 1"),
        ("sample_size", 33, "multiple of patch_size=2"),
        ("sample_size", [32, 31], "multiple of patch_size=2"),
        ("sample_size", [32, 32, 32], "pair"),
        ("sample_size", "32", "pair"),
        ("in_channels", 0, "at least 1"),
        ("num_classes", -1, "0 for unconditional"),
        ("num_classes", None, "0 for unconditional"),
        ("learn_sigma", "yes", "True or False"),
        ("class_dropout_prob", 1.5, r"\[0, 1\]"),
        ("class_dropout_prob", -0.1, r"\[0, 1\]"),
        ("class_dropout_prob", float("nan"), r"\[0, 1\]"),
        ("mlp_ratio", 0, r"\[0.001, 1000\]"),
        ("block_type", "adaln-zero", "in_context, cross_attention, adaln, adaln_zero"),
        ("timestep_freq_shift", 2, r"\[0, 1\]"),
        ("mlp_norm_eps", -1e-6, r"\[0, 1\]"),
    ],
)
def test_bad_value_is_refused_with_field_value_and_limit(field, value, limit):
    with pytest.raises(ValueError, match=rf"{field}=.*{limit}"):
        DiTConfig(**{field: value})


def test_mlp_without_a_neuron_is_refused():
    with pytest.raises(ValueError, match="mlp_ratio=0.05.*at least 1 / hidden_size"):
        DiTConfig(hidden_size=16, num_attention_heads=4, mlp_ratio=0.05)


@pytest.mark.parametrize("field", ["depth", "hiddensize", "out_channels", "input_size", "temperature", "to_dict"])
def test_unknown_field_is_refused_with_the_known_ones(field):
    with pytest.raises(ValueError, match=f"unknown field '{field}'.*hidden_size"):
        DiTConfig(**{field: 1})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("hiden_size", "hidden_size"), ("num_layers", "num_hidden_layers"), ("patchsize", "patch_size")],
)
def test_wrong_name_of_a_caller_is_refused_with_the_closest_field(wrong, meant, tmp_path):
    with pytest.raises(ValueError, match=f"unknown field '{wrong}': did you mean '{meant}'"):
        DiTConfig(**{wrong: 1})
    with pytest.raises(ValueError, match=f"unknown field '{wrong}': did you mean '{meant}'"):
        DiTConfig.from_name("DiT-S/2", **{wrong: 1})


def test_wrong_name_beside_a_file_is_refused_with_the_closest_field(tmp_path):
    DiTConfig.from_name("DiT-S/8").save_pretrained(tmp_path)
    for load in (DiTConfig, AutoConfig):
        with pytest.raises(ValueError, match="unknown field 'hiden_size': did you mean 'hidden_size'"):
            load.from_pretrained(tmp_path, hiden_size=96)
        assert load.from_pretrained(tmp_path, hidden_size=96).hidden_size == 96


FOREIGN = {
    "use_cache": False,  # transformers' Trainer
    "tie_word_embeddings": True,
    "torchscript": False,
    "pad_token_id": 0,
    "initializer_range": 0.02,
    "temperature": 0.7,  # a parameter of generation, which transformers takes out of configurations
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "out_channels": 8,  # computed here
    "field_of_a_later_version": [1, {"a": None}],
}


@pytest.mark.parametrize("names", [*([name] for name in FOREIGN), [*FOREIGN]])
def test_unknown_fields_of_a_file_are_kept_with_one_warning_and_written_back(names, tmp_path, caplog):
    content = {
        **DiTConfig.from_name("DiT-S/8", num_classes=3).to_diff_dict(),
        **{name: FOREIGN[name] for name in names},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    for load in (DiTConfig.from_pretrained, AutoConfig.from_pretrained, DiTConfig.from_json_file):
        caplog.clear()
        config = load(tmp_path / "config.json" if load == DiTConfig.from_json_file else tmp_path)
        assert [record.message.split(": ")[1] for record in caplog.records] == [f"{', '.join(names)}."]
        config.save_pretrained(tmp_path / "again")
        written = json.loads((tmp_path / "again" / "config.json").read_text())
        assert {name: written[name] for name in content if name != "transformers_version"} == {
            name: value for name, value in content.items() if name != "transformers_version"
        }
    assert config.hidden_size == 384
    assert config.out_channels == 8
    assert DiTConfig.from_pretrained(tmp_path, **{names[0]: 5}).to_dict()[names[0]] == 5


def test_field_of_a_file_that_would_hide_a_method_is_refused():
    for name in ("to_dict", "check"):
        with pytest.raises(ValueError, match=f"sets '{name}', a method of DiTConfig: take it out"):
            DiTConfig.from_dict({**DiTConfig().to_dict(), name: 1})


def test_fields_of_transformers_pass(tmp_path):
    passing = {
        "auto_map": {"AutoConfig": "configuration_dit.DiTConfig"},
        "_attn_implementation": "eager",
        "transformers_version": "5.3.0",
        "architectures": ["DiTModel"],
        "dtype": "bfloat16",
        "output_hidden_states": True,
        "quantization_config": {"quant_method": "none"},
        "id2label": {"0": "tench"},
        "num_labels": 1,
        "_name_or_path": "somewhere",
        "model_type": "dit",
        "torch_dtype": "float16",
        "attn_implementation": "sdpa",
        "_diffusers_version": "0.42.1",
    }
    for name, value in passing.items():
        DiTConfig(**{name: value})
    assert DiTConfig(dtype="bfloat16").dtype == torch.bfloat16
    assert DiTConfig(attn_implementation="eager")._attn_implementation == "eager"
    DiTConfig(dtype="bfloat16", auto_map=passing["auto_map"]).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, attn_implementation="eager").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["somebody/kernel", {"": "somebody/kernel"}, "eager2"])
def test_file_that_asks_for_attention_of_the_hub_is_refused(tmp_path, name, value):
    content = {**DiTConfig.from_name("DiT-S/8").to_dict(), name: value}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"the configuration asks for {name}="):
        DiTConfig.from_pretrained(tmp_path)


def test_file_may_name_an_attention_of_transformers(tmp_path):
    content = {**DiTConfig.from_name("DiT-S/8").to_dict(), "attn_implementation": "eager"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    # before 5.4 or so transformers leaves the field of a file to whoever builds the model
    assert DiTConfig.from_pretrained(tmp_path)._attn_implementation in ("eager", None)


@pytest.mark.slow
@given(data=st.data())
def test_any_configuration_survives_its_file_or_is_refused(data):
    """Valid fields come back as they were; with anything else in a field there is one kind of error."""
    patch, heads = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    side = st.integers(1, 16).map(lambda count: count * patch)
    fields = {
        "hidden_size": 4 * heads * data.draw(st.integers(1, 64)),
        "num_hidden_layers": data.draw(st.integers(1, 99)),
        "num_attention_heads": heads,
        "patch_size": patch,
        "sample_size": data.draw(side | st.tuples(side, side)),
        "in_channels": data.draw(st.integers(1, 64)),
        "num_classes": data.draw(st.integers(0, 10**6)),
        "learn_sigma": data.draw(st.booleans()),
        "class_dropout_prob": data.draw(st.floats(0, 1)),
        "mlp_ratio": data.draw(st.floats(0.25, 1e3)),
        "block_type": data.draw(st.sampled_from(["in_context", "cross_attention", "adaln", "adaln_zero"])),
        "timestep_freq_shift": data.draw(st.floats(0, 1)),
        "mlp_norm_eps": data.draw(st.floats(0, 1)),
    }
    config = DiTConfig(**fields)
    again = DiTConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers())
    spoilt = {**config.to_dict(), data.draw(st.sampled_from([*fields, "id2label", "dtype"])): data.draw(anything)}
    try:
        read = DiTConfig.from_dict(spoilt)
    except ValueError:
        return
    assert DiTConfig.from_dict(read.to_dict()).to_dict() == read.to_dict()


@pytest.mark.parametrize("content", ["null", "[1]", "3", '"text"'])
def test_file_that_holds_no_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="holds no object of names and values"):
        DiTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_labels": 2**31}, "num_labels=2147483648: leave it out"),
        ({"id2label": [1]}, "a field that transformers cannot read"),
        ({"dtype": "no.such"}, "a field that transformers cannot read"),
        ({"dtype": 3.5}, "dtype=3.5: it is a name"),
    ],
)
def test_field_of_transformers_with_a_wrong_value_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig.from_dict({**DiTConfig().to_dict(), **fields})


def test_paper_size_is_known_whatever_else_differs():
    assert DiTConfig(num_classes=3, sample_size=64).paper_size == "DiT-XL/2"
    assert DiTConfig.from_name("DiT-S/4", hidden_size=96).paper_size is None
