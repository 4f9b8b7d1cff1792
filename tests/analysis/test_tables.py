"""What `dit-hf flops` prints, and a measured row under the paper's."""

import json

import numpy as np
import pytest

from dit_hf import DiTConfig
from dit_hf.analysis import costs, count_gmacs, format_results, paper_rows, result_of
from dit_hf.analysis.quoted import CORRELATIONS, FIDS_400K
from dit_hf.analysis.tables import format_costs, format_paper_rows, read_config, read_vae_config
from dit_hf.configuration_dit import PAPER_SIZES

TRAINING = {"batch_size": 256, "train_steps": 400_000}


def test_quoted_fids_have_the_correlation_that_the_paper_prints():
    gmacs = [PAPER_SIZES[f"DiT-{name}"].gmacs for name in FIDS_400K]
    assert np.corrcoef(np.log(gmacs), list(FIDS_400K.values()))[0, 1] == pytest.approx(CORRELATIONS["FID"], abs=0.005)


def test_guidance_doubles_sampling_and_training_is_three_forwards():
    config = DiTConfig.from_name("DiT-S/8")
    plain = costs(config, num_steps=250, guidance_scale=1.0, **TRAINING)
    guided = costs(config, num_steps=250, guidance_scale=1.5, **TRAINING)
    assert plain["gmacs_of_a_sample"] == pytest.approx(250 * count_gmacs(config))
    assert guided["gmacs_of_a_sample"] == pytest.approx(500 * count_gmacs(config))
    # the paper's figure 9: 3 x Gflops x batch x steps
    assert plain["gmacs_of_training"] == pytest.approx(3 * count_gmacs(config) * 256 * 400_000)


def test_guidance_without_null_class_is_refused():
    with pytest.raises(ValueError, match="no null class"):
        costs(DiTConfig(num_classes=0), num_steps=1, guidance_scale=2.0, **TRAINING)


def test_table_of_the_paper_has_its_seventeen_models_and_reads_as_text():
    rows = paper_rows()
    assert len(rows) == 17
    assert all(abs(row["gmacs"] - row["gmacs_in_the_paper"]) < 0.1 for row in rows)
    text = format_paper_rows(rows)
    assert "DiT-XL/2    512" in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_costs_print_every_line_they_have():
    found = costs(DiTConfig.from_name("DiT-S/8"), num_steps=250, guidance_scale=1.0, **TRAINING)
    assert len(format_costs(found).splitlines()) == len(found)


def test_configuration_is_read_from_a_pipeline_s_folder(tmp_path):
    (tmp_path / "transformer").mkdir()
    DiTConfig(hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path / "transformer")
    assert read_config(str(tmp_path), sample_size=8).sample_size == 8
    assert read_config(str(tmp_path)).hidden_size == 64
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"latent_channels": 3}))
    assert read_vae_config(str(tmp_path)) == {"latent_channels": 3}


@pytest.mark.parametrize("read", [read_config, read_vae_config])
def test_neither_name_nor_folder_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder .*nowhere"):
        read(str(tmp_path / "nowhere"))


def test_evaluation_becomes_one_more_row_under_the_paper_s():
    mine = result_of("mine", {"fid": 3.21, "sfid": 4.5, "inception_score": 200.0, "precision": 0.8, "kid": 1.0})
    lines = format_results(256, [mine]).splitlines()
    assert lines[-1].split() == ["mine", "3.21", "4.50", "200.00", "0.80", "-"]
    assert lines[-3].split()[-5:] == ["2.27", "4.60", "278.24", "0.83", "0.57"]
    assert len(format_results(512).splitlines()) == 10


def test_row_of_other_features_and_unknown_resolution_are_refused():
    with pytest.raises(ValueError, match="Inception"):
        result_of("mine", {"fd": 3.0})
    with pytest.raises(ValueError, match="resolution=128"):
        format_results(128)
