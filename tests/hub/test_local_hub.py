"""The local Hub itself, driven by huggingface_hub, transformers and datasets as they are."""

import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModel


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi()


def upload(api: HfApi, name: str, content: bytes, **options) -> str:
    return api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="user/m", **options).oid


def test_commits_branches_and_tags_keep_their_files(api):
    api.create_repo("user/m")
    first = upload(api, "a/b.txt", b"one")
    api.create_tag("user/m", tag="v1")
    api.create_branch("user/m", branch="next")
    upload(api, "a/b.txt", b"two", revision="next")
    read = {revision: open(hf_hub_download("user/m", "a/b.txt", revision=revision)).read()
            for revision in ("main", "v1", first, "next")}  # fmt: skip
    assert read == {"main": "one", "v1": "one", first: "one", "next": "two"}
    refs = api.list_repo_refs("user/m")
    assert [ref.name for ref in refs.branches] == ["main", "next"]
    assert [ref.name for ref in refs.tags] == ["v1"]
    assert [commit.title for commit in api.list_repo_commits("user/m", revision="next")][1:] == [
        commit.title for commit in api.list_repo_commits("user/m")
    ]
    assert [entry.path for entry in api.list_repo_tree("user/m")] == ["a", ".gitattributes"]
    api.delete_file("a/b.txt", "user/m")
    assert api.list_repo_files("user/m") == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(api, "c.txt", b"stale", parent_commit=first)


def test_what_is_missing_or_closed_has_its_own_error(api, hub, monkeypatch):
    api.create_repo("user/m", private=True)
    upload(api, "a.txt", b"one")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("user/m", "b.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/m", "a.txt", revision="none")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("user/none", "a.txt")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RepositoryNotFoundError) as error:
        api.model_info("user/m")
    assert error.value.response.status_code == 401
    repository = hub.repository("user/m")
    repository.private, repository.gated = False, True
    assert api.model_info("user/m").gated == "auto"
    with pytest.raises(GatedRepoError):
        api.auth_check("user/m")


def test_nothing_corrupt_is_left_in_the_cache_by_a_download_that_fails(api, hub):
    api.create_repo("user/m")
    content = bytes(range(256)) * 200
    upload(api, "w.safetensors", content)
    hub.cut("GET", "resolve/.*w.safetensors", after=20_000, times=50)
    with pytest.raises(Exception, match=r"peer closed connection|Consistency check"):
        hf_hub_download("user/m", "w.safetensors")
    hub.faults.clear()
    with open(hf_hub_download("user/m", "w.safetensors"), "rb") as file:
        assert file.read() == content
    before = hub.count("GET", "resolve")
    snapshot_download("user/m", allow_patterns="w.safetensors")
    assert hub.count("GET", "resolve") == before  # it lies in the cache


@pytest.mark.parametrize("hub_of_the_process", ["first", "second"])
def test_model_alone_is_pushed_privately_and_loads(hub, pipeline, hub_of_the_process):
    """Twice, because transformers keeps a client for the Hub that it met first."""
    pipeline.transformer.push_to_hub("user/net")
    assert hub.repository("user/net").private
    loaded = AutoModel.from_pretrained("user/net", cache_dir=constants.HF_HUB_CACHE)
    assert type(loaded) is type(pipeline.transformer)
    assert loaded.num_parameters() == pipeline.transformer.num_parameters()


def test_save_that_would_push_publicly_is_refused(hub, pipeline, tmp_path):
    with pytest.raises(ValueError, match="call the method push_to_hub instead"):
        pipeline.save_pretrained(tmp_path, push_to_hub=True)
    assert hub.log == []


def test_pushed_data_set_is_streamed_through_faults(hub, pushed_images):
    assert sum(name.endswith(".parquet") for name in pushed_images.files()) == 2
    hub.fail("GET", "resolve/.*parquet", 503, times=2)
    hub.cut("GET", "resolve/.*parquet", after=100)
    stream = load_dataset("user/images", split="train", streaming=True)
    rows = list(stream)
    assert [row["label"] for row in rows] == [0, 1] * 6
    assert [row["image"].getpixel((0, 0))[0] for row in rows] == [20 * k for k in range(12)]
    assert [entry.status for entry in hub.requests("GET", "resolve/.*parquet")].count(503) == 2
