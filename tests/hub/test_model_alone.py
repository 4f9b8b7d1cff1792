"""The network of a pipeline on the Hub, loaded without the pipeline."""

import pytest
from torch.testing import assert_close

from dit_hf import DiTModel
from dit_hf.hub.push import push_folder


def test_pipeline_is_refused_as_a_model_with_the_subfolder_to_pass(hub, saved, pipeline):
    push_folder(saved, "user/dit")
    with pytest.raises(ValueError, match=r'user/dit is a pipeline: pass subfolder="transformer"'):
        DiTModel.from_pretrained("user/dit")
    model = DiTModel.from_pretrained("user/dit", subfolder="transformer")
    assert_close(model.state_dict(), pipeline.transformer.state_dict(), rtol=0, atol=0)
    with pytest.raises(OSError, match="user/none"):  # no repository at all
        DiTModel.from_pretrained("user/none")
