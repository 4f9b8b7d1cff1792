"""The network of a pipeline on the Hub, loaded without the pipeline."""

import copy

import pytest
from huggingface_hub import HfApi
from torch.testing import assert_close

from dit_hf import DiTModel
from dit_hf.hub.push import push_folder


@pytest.mark.parametrize("branch", [None, "new"])
def test_pushed_model_supersedes_the_weights_of_the_repository(hub, pipeline, branch):
    model = copy.deepcopy(pipeline.transformer)
    model.push_to_hub("user/model")
    for shift, size in enumerate(("1GB", "10KB", "20KB", "1GB")):
        model.final_layer.linear.bias.data.fill_(shift)
        model.push_to_hub("user/model", max_shard_size=size, revision=branch)
        loaded = DiTModel.from_pretrained("user/model", revision=branch or "main", force_download=True)
        assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        files = HfApi().list_repo_files("user/model", revision=branch)
        assert ("model.safetensors" in files) == (size == "1GB")
        assert ("model.safetensors.index.json" in files) == (size != "1GB")


def test_pipeline_is_refused_as_a_model_with_the_subfolder_to_pass(hub, saved, pipeline):
    push_folder(saved, "user/dit")
    with pytest.raises(ValueError, match=r'user/dit is a pipeline: pass subfolder="transformer"'):
        DiTModel.from_pretrained("user/dit")
    model = DiTModel.from_pretrained("user/dit", subfolder="transformer")
    assert_close(model.state_dict(), pipeline.transformer.state_dict(), rtol=0, atol=0)
    with pytest.raises(OSError, match="user/none"):  # no repository at all
        DiTModel.from_pretrained("user/none")
