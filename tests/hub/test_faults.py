"""What goes wrong between here and the Hub, in one table: load, stream and push end well, or in one line with why.

A row without a message must end well, whatever happened on the way. Nothing hangs, and nothing broken is kept. The
training's own stream has such a table in `data/test_hub_stream.py`.
"""

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import close_session, constants, hf_api
from safetensors.torch import load_file, save_file

from dit_hf import DiTPipeline
from dit_hf.hub.push import push_folder

WEIGHTS, INDEX, INFO, SHARD = "transformer/model.safetensors", "model_index.json", "api/models/user/dit", r"parquet$"
FOR_EVER = 1000


def fails(path: str, status: int, times: int, method: str = "GET", **headers: str):
    return lambda hub, monkeypatch: hub.fail(method, path, status, times, headers={"Retry-After": "0", **headers})


def cuts(path: str, after: int, times: int, method: str = "GET"):
    return lambda hub, monkeypatch: hub.cut(method, path, after, times)


SILENCE = 3.0  # seconds; another request that takes longer is tried again


def stalls(path: str, method: str = "GET"):
    def arrange(hub, monkeypatch) -> None:
        monkeypatch.setattr("dit_hf.network.LONGEST_SILENCE", SILENCE)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", SILENCE)
        close_session()
        hub.stall(method, path)

    return arrange


def no_network(hub, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")


def token_of(name: str, role: str = "write"):
    return lambda hub, monkeypatch: monkeypatch.setenv("HF_TOKEN", hub.add_user(name, role) if name else "")


def gate(hub, monkeypatch) -> None:
    hub.repository("user/dit").private, hub.repository("user/dit").gated = False, True
    monkeypatch.setenv("HF_TOKEN", hub.add_user("stranger"))


def without_index(hub, monkeypatch) -> None:
    del hub.repository("user/dit").refs["main"].files[INDEX]


def wrong_bytes(hub, monkeypatch) -> None:
    """The Hub sends bytes of the right length that are not those of its hash."""
    files = hub.repository("user/dit").refs["main"].files
    blob = files[WEIGHTS]

    class Wrong(type(blob)):
        etag = sha256 = blob.sha256

    files[WEIGHTS] = Wrong(blob.content[:-1] + bytes([blob.content[-1] ^ 1]), lfs=True)


def load(saved) -> None:
    pipeline = DiTPipeline.from_pretrained("user/dit", cache_dir=constants.HF_HUB_CACHE)
    for key, weight in load_file(saved / WEIGHTS).items():
        assert torch.equal(pipeline.transformer.state_dict()[key], weight)


def stream(saved) -> None:
    assert [row["label"] for row in load_dataset("user/images", split="train", streaming=True)] == [0, 1] * 6


def push(saved) -> None:
    weights = load_file(saved / WEIGHTS)
    save_file({key: weight + 1 for key, weight in weights.items()}, saved / WEIGHTS)
    push_folder(saved, "user/dit")


NO_CONNECTION, LATER = "no connection: check the network", "run the same command again later"
FAULTS = {
    # what is done, what happens, the end
    "the index is not there for a moment": (load, fails(INDEX, 503, 2), ""),
    "the repository's state is not there for a moment": (load, fails(INFO, 503, 2), ""),
    "too many requests for weights": (load, fails(WEIGHTS, 429, 2), ""),
    "weights are not there for a moment": (load, fails(WEIGHTS, 500, 2), ""),
    "weights are cut twice": (load, cuts(WEIGHTS, 3000, 2), ""),
    "weights are cut for ever": (load, cuts(WEIGHTS, 3000, FOR_EVER), NO_CONNECTION),
    "the Hub stays down": (load, fails("", 503, FOR_EVER), LATER),
    "the Hub never answers once": (load, stalls(WEIGHTS), ""),
    "loading without a network": (load, no_network, NO_CONNECTION),
    "loading without a token": (load, token_of(""), "the token may not see it"),
    "loading with a stranger's token": (load, token_of("stranger"), "the token may not see it"),
    "loading what is gated": (load, gate, "the repository is gated: ask for access"),
    "loading what is no pipeline": (load, without_index, "the repository lacks a file"),
    "loading bytes that are not the Hub's": (load, wrong_bytes, "is damaged in the cache: delete"),
    "a shard is not there for a moment": (stream, fails(SHARD, 503, 2), ""),
    "too many requests for a shard": (stream, fails(SHARD, 429, 2), ""),
    "a shard is cut": (stream, cuts(SHARD, 100, 2), ""),
    "streaming without a token": (stream, token_of(""), "doesn't exist on the Hub or cannot be accessed"),
    "too many requests at the commit": (push, fails("/commit/", 429, 2, "POST"), ""),
    "the Hub stays down at the commit": (push, fails("/commit/", 503, FOR_EVER, "POST"), LATER),
    "an upload is cut": (push, cuts("/lfs/", 5000, 2, "PUT"), ""),
    "an upload is cut for ever": (push, cuts("/lfs/", 5000, FOR_EVER, "PUT"), NO_CONNECTION),
    "the commit never gets an answer once": (push, stalls("/commit/", "POST"), ""),
    "pushing without a network": (push, no_network, NO_CONNECTION),
    "pushing with a token that reads": (push, token_of("user", "read"), "can only read"),
    "pushing to another's name": (push, token_of("stranger"), "the token may not do this"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "fault", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_ends_well_or_in_one_line(what, fault, message, hub, saved, request, monkeypatch):
    if what is stream:
        request.getfixturevalue("pushed_images")
    push_folder(saved, "user/dit")
    before = hub.repository("user/dit").files()
    fault(hub, monkeypatch)
    said = ""
    try:
        what(saved)
    except (OSError, ValueError) as error:  # what the command line says in one line
        said = str(error)
    if "never" in request.node.name:
        assert hub.ends_of_stalls.get(timeout=hub.STALL_SECONDS)  # the client did not wait for ever
    close_session()
    assert (message in said) if message else not said, said
    assert "\n" not in said
    if what is push:  # all of it has arrived, or nothing
        after = hub.repository("user/dit").files()
        assert after == before if message else after[WEIGHTS] == (saved / WEIGHTS).read_bytes()


def test_table_has_the_faults_of_each_way():
    assert len(FAULTS) >= 25
    assert {what for what, *_ in FAULTS.values()} == {load, stream, push}


def test_folder_that_is_not_there_is_not_taken_for_a_missing_repository_alone(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder out: a name below one that exists is a path
    with pytest.raises(
        OSError, match="^out/pipelin at .*If you meant a folder: there is no file or folder out/pipelin: .* is empty"
    ):
        DiTPipeline.from_pretrained("out/pipelin")
    with pytest.raises(ValueError, match="there is no file or folder out/dit/pipelin"):  # no repository has such a name
        DiTPipeline.from_pretrained("out/dit/pipelin")
