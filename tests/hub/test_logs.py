"""What a push and a load say, errors included, holds no token, no signed address and no path of the machine."""

import logging
import os
from collections.abc import Callable

import pytest
from huggingface_hub import constants, hf_api

from dit_hf import DiTPipeline
from dit_hf.cards.training import TrainingCard
from dit_hf.hub.background import BackgroundPush
from dit_hf.hub.errors import HubError
from dit_hf.hub.push import push_folder

SIGNATURE = "0123456789abcdef" * 4
WEIGHTS = "transformer/model.safetensors"


@pytest.fixture
def said(hub, caplog, capsys) -> Callable[[], str]:
    """All that this package and huggingface_hub have logged and printed so far."""
    hub.signature = f"X-Amz-Credential=AKIA0&X-Amz-Signature={SIGNATURE}"
    caplog.set_level(logging.INFO, logger="dit_hf")
    library = logging.getLogger("huggingface_hub")  # it does not propagate
    library.addHandler(caplog.handler)
    yield lambda: "".join([caplog.text, *capsys.readouterr()])
    library.removeHandler(caplog.handler)


def assert_nothing_private(text: str, tmp_path) -> None:
    for private in (os.environ["HF_TOKEN"], SIGNATURE, "AKIA0", str(tmp_path)):
        assert private not in text


def test_push_says_nothing_private(hub, saved, said, tmp_path):
    hub.fail("PUT", "/lfs/", 503, times=2)
    hub.cut("PUT", "/lfs/", after=100)
    hub.fail("POST", "/commit/", 503)
    push = BackgroundPush("user/dit", TrainingCard(tmp_path, {}, {}))
    push.start(saved, "Step 1")
    push.wait()
    (saved / "new.txt").write_text("new")
    hub.fail("POST", "/commit/", 500, times=1000)
    push.start(saved, "Step 2")
    push.wait()
    text = said()
    assert "503" in text
    assert f"Step 1: {hub.url}/user/dit/commit/" in text
    assert "Step 2: the push failed, the training continues" in text
    assert_nothing_private(text, tmp_path)


def test_load_says_nothing_private(hub, saved, said, tmp_path):
    push_folder(saved, "user/dit")
    hub.fail("GET", WEIGHTS, 503, times=2)
    hub.cut("GET", f"{WEIGHTS}$", after=3000)
    DiTPipeline.from_pretrained("user/dit", cache_dir=constants.HF_HUB_CACHE)
    hub.cut("GET", f"{WEIGHTS}$", after=3000, times=1000)
    with pytest.raises(HubError) as error:
        DiTPipeline.from_pretrained("user/dit", cache_dir=tmp_path / "other")
    text = said() + str(error.value)
    assert [entry.status for entry in hub.requests("HEAD", WEIGHTS)].count(302) > 1
    assert f"{WEIGHTS}? peer closed connection" in text
    assert "no connection: check the network" in text
    assert_nothing_private(text, tmp_path)


def test_address_of_a_hub_that_holds_a_token_is_not_repeated(hub, monkeypatch, said, tmp_path):
    address = f"http://user:{os.environ['HF_TOKEN']}@127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", address)
    attempts = (
        lambda name: BackgroundPush(name, TrainingCard(tmp_path, {}, {})),
        lambda name: DiTPipeline.from_pretrained(name, cache_dir=tmp_path),
    )
    for attempt in attempts:
        with pytest.raises(HubError, match=r"user/dit at http://127\.0\.0\.1:9: no connection") as error:
            attempt("user/dit")
        assert_nothing_private(said() + str(error.value), tmp_path)
