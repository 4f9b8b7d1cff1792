"""Pushing to a local Hub with the real clients: what arrives, what is sent again, and what goes wrong on the way."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, close_session, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file

from dit_hf import DiTModel, DiTPipeline
from dit_hf.hub.background import BackgroundPush, save_training_pipeline
from dit_hf.hub.errors import HubError
from dit_hf.hub.push import check_push, push_folder
from dit_hf.hub.verify import check_cached, verify_snapshot


def image_of(pipeline: DiTPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    seeded = torch.Generator().manual_seed(1)
    return pipeline(["goldfish"], num_inference_steps=3, generator=seeded, output_type="np").images


class NoCard:
    """A card of a training that writes nothing."""

    def outline(self) -> ModelCard:
        return ModelCard("---\nlicense: mit\n---\n")

    def write(self, pipeline, folder: Path) -> None:
        pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what arrives ------------------------------------------------------------------------------------------------


def test_pushed_pipeline_comes_back_and_samples_the_same(hub, pipeline, saved, capsys):
    commit = pipeline.push_to_hub("user/dit-tiny")
    repository = hub.repository("user/dit-tiny")
    assert repository.private
    assert commit.oid == repository.refs["main"].oid
    assert set(repository.files()) == {*contents(saved), "README.md", ".gitattributes"}
    assert f"{hub.url}/user/dit-tiny/commit/{commit.oid} (private)" in capsys.readouterr().err
    loaded = DiTPipeline.from_pretrained("user/dit-tiny", cache_dir=constants.HF_HUB_CACHE)
    np.testing.assert_array_equal(image_of(loaded), image_of(pipeline))


def test_everything_arrives_in_one_commit(hub, saved):
    push_folder(saved, "user/dit", commit_message="First")
    assert [commit.message for commit in hub.repository("user/dit").history("main")] == ["First", "initial commit"]


def test_name_without_an_account_goes_to_one_s_own(hub, saved):
    push_folder(saved, "dit")
    assert "model_index.json" in hub.repository("user/dit").files()


def test_second_push_sends_only_what_changed(hub, saved):
    first = push_folder(saved, "user/dit")
    assert push_folder(saved, "user/dit").oid == first.oid  # no commit where nothing changed
    assert hub.count("PUT", "/lfs/") == 2  # the weights of transformer and VAE
    (saved / "README.md").write_text("# DiT\n")
    push_folder(saved, "user/dit")
    assert hub.count("PUT", "/lfs/") == 2
    assert hub.requests("POST", "/commit/")[-1].received < 500
    assert hub.repository("user/dit").files()["README.md"] == b"# DiT\n"


FORMS = {"single": {}, "shards": {"max_shard_size": "30KB"}}


@pytest.mark.parametrize("order", [("single", "shards"), ("shards", "single")])
@pytest.mark.parametrize("options", [{}, {"revision": "v2"}, {"create_pr": True}])
def test_weights_that_new_ones_supersede_are_deleted_in_the_same_commit(hub, pipeline, tmp_path, order, options):
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, form in zip((before, after), order, strict=True):
        pipeline.save_pretrained(folder, **FORMS[form])
    (before / "notes.txt").write_text("by hand")
    (before / "configuration_dit.py").write_text("# of version 0.1.0")
    push_folder(before, "user/dit")
    commit = push_folder(after, "user/dit", **options)
    repository = hub.repository("user/dit")
    revision = commit.pr_revision or options.get("revision", "main")
    assert set(repository.files(revision)) == {*contents(after), "notes.txt", ".gitattributes"}
    assert len(list(repository.history(revision))) == 3  # the initial commit and one for each push
    if not options:
        np.testing.assert_array_equal(image_of(DiTPipeline.from_pretrained("user/dit")), image_of(pipeline))
    else:
        assert set(contents(before)) <= set(repository.files("main"))


def test_repository_that_holds_weights_twice_is_refused_before_they_are_fetched(hub, pipeline, saved, tmp_path):
    push_folder(saved, "user/dit")
    pipeline.save_pretrained(tmp_path / "shards", **FORMS["shards"])
    blob = type(next(iter(hub.repository("user/dit").refs["main"].files.values())))
    files = hub.repository("user/dit").refs["main"].files
    for name, content in contents(tmp_path / "shards").items():
        if name.startswith("transformer/model"):
            files[name] = blob(content, lfs=name.endswith(".safetensors"))
    message = r"user/dit.* holds the weights twice.*delete transformer/model.safetensors, or delete"
    with pytest.raises(ValueError, match=message):
        DiTPipeline.from_pretrained("user/dit")
    assert not hub.count("GET", "/transformer/model.safetensors")
    with pytest.raises(ValueError, match=r"user/dit holds the weights twice, as model\.safetensors"):
        DiTModel.from_pretrained("user/dit", subfolder="transformer")
    push_folder(saved, "user/dit", commit_message="Again")  # which mends the repository
    assert isinstance(DiTPipeline.from_pretrained("user/dit"), DiTPipeline)


def test_branch_is_made_and_main_stays(hub, saved):
    push_folder(saved, "user/dit", revision="v2")
    repository = hub.repository("user/dit")
    assert "model_index.json" in repository.files("v2")
    assert "model_index.json" not in repository.files("main")


def test_pull_request_leaves_main_as_it_is(hub, saved):
    commit = push_folder(saved, "user/dit", create_pr=True)
    repository = hub.repository("user/dit")
    assert commit.pr_revision == "refs/pr/1"
    assert "model_index.json" in repository.files("refs/pr/1")
    assert "model_index.json" not in repository.files("main")
    with pytest.raises(ValueError, match="a pull request goes to main"):
        push_folder(saved, "user/dit", create_pr=True, revision="v2")


def test_card_that_people_edited_stays(hub, pipeline):
    pipeline.push_to_hub("user/dit")
    hub.repository("user/dit").refs["main"].files["README.md"] = type(
        next(iter(hub.repository("user/dit").refs["main"].files.values()))
    )(b"# mine\n", lfs=False)
    pipeline.push_to_hub("user/dit")
    assert hub.repository("user/dit").files()["README.md"] == b"# mine\n"


def test_pipeline_without_the_package_says_to_install_it(pipeline, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dit_hf.hub.push", None)
    with pytest.raises(ImportError, match="push_to_hub needs the package dit-hf: pip install dit-hf"):
        pipeline.push_to_hub("user/dit")


# --- what is never sent ------------------------------------------------------------------------------------------


def test_public_repository_is_asked_for_by_name(hub, saved, capsys):
    push_folder(saved, "user/dit", private=False)
    assert "(PUBLIC)" in capsys.readouterr().err
    with pytest.raises(ValueError, match="user/dit is public: pass private=False"):
        push_folder(saved, "user/dit")


@pytest.mark.parametrize("name", [".env", "training_args.bin", "checkpoints/optimizer.pt", "run.py", "x.pkl", "events"])
def test_file_that_no_pipeline_has_is_refused_before_anything_is_sent(hub, saved, name):
    (saved / name).parent.mkdir(exist_ok=True)
    (saved / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{name} is not pushed"):
        push_folder(saved, "user/dit")
    assert hub.log == []


@pytest.mark.parametrize(
    "name", ["README.md", "scheduler/scheduler_config.json", "pipeline_dit.py", "notes.txt", "a.png"]
)
@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("hf" + "_" + "aB3" * 12, "a Hugging Face token"),
        ("ghp" + "_" + "a" * 36, "a GitHub token"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("token-in-use", "the token in use"),
        (f"{Path.home()}/data", "a path of this machine"),
    ],
)
def test_secret_in_any_file_is_refused_before_anything_is_sent(hub, saved, monkeypatch, name, secret, kind):
    if kind == "the token in use":
        monkeypatch.setenv("HF_TOKEN", secret)
    with (saved / name).open("a") as file:
        file.write(f"\nx: {secret}\n")
    with pytest.raises(ValueError, match=f"{name} holds {kind}"):
        push_folder(saved, "user/dit")
    assert hub.log == []


def test_secret_in_the_metadata_of_weights_is_refused(hub, saved):
    save_file({"w": torch.zeros(1)}, saved / "x.safetensors", metadata={"by": "hf" + "_" + "b" * 34})
    with pytest.raises(ValueError, match="x.safetensors holds a Hugging Face token"):
        push_folder(saved, "user/dit")


def test_folder_without_a_pipeline_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index.json"):
        push_folder(tmp_path, "user/dit")


# --- what goes wrong ---------------------------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("repo_id", "token", "remedy"),
    [
        ("user/dit", None, "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("user/dit", "wrong", "the token is not valid: log in again"),
        ("user/dit", "reader", "the token of user can only read: make one with write access"),
        ("somebody/dit", "writer", "the token may not do this"),
        ("a/b/c", "writer", "this is no repository id: write it as `user/name`"),
    ],
)
def test_push_that_will_not_be_allowed_is_refused_in_one_line(hub, monkeypatch, repo_id, token, remedy):
    tokens = {"wrong": "hf" + "_wrong", "reader": hub.add_user("user", "read"), "writer": hub.add_user("user")}
    monkeypatch.setenv("HF_TOKEN", tokens.get(token, ""))
    with pytest.raises(HubError) as error:
        check_push(repo_id)
    assert remedy in one_line(error)
    assert hub.repositories == {}


def test_offline_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(HubError, match="unset HF_HUB_OFFLINE"):
        check_push("user/dit")


def test_no_network_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="no connection: check the network"):
        check_push("user/dit")


@pytest.mark.parametrize("repo_id", ["user/dit@main", "a/b/c", "out/dit/", "user/my dit"])
def test_what_is_no_id_is_said_before_the_hub_is_asked(hub, repo_id):
    with pytest.raises(HubError, match="this is no repository id: write it as `user/name`"):
        check_push(repo_id)
    assert hub.log == []


FAULTS = [  # method, path: each request that a push makes
    ("GET", "whoami"), ("POST", "repos/create"), ("GET", "auth-check"), ("GET", "/api/models/user/dit$"),
    ("POST", "preupload"), ("POST", "objects/batch"), ("PUT", "/lfs/"), ("POST", "lfs-verify"), ("POST", "/commit/"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), FAULTS, ids=[path for _, path in FAULTS])
@pytest.mark.parametrize("status", [429, 503])
def test_every_request_of_a_push_is_retried(hub, saved, method, path, status):
    hub.fail(method, path, status, times=2, headers={"Retry-After": "0"})
    push_folder(saved, "user/dit")
    assert (
        hub.repository("user/dit").files()["transformer/model.safetensors"]
        == (saved / "transformer" / "model.safetensors").read_bytes()
    )
    assert [entry.status for entry in hub.requests(method, path)][:3] == [status, status, 200]


def test_push_waits_as_long_as_the_hub_asks(hub, saved, monkeypatch):
    waits = []
    monkeypatch.setattr("dit_hf.network.time.sleep", waits.append)
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "7"})
    push_folder(saved, "user/dit")
    assert waits == [7]
    hub.fail("POST", "/commit/", 429, headers={"Retry-After": "3600"})
    (saved / "new.txt").write_text("new")
    with pytest.raises(HubError, match="the Hub asks for fewer requests"):
        push_folder(saved, "user/dit")
    assert waits == [7]


def test_hub_that_stays_down_ends_the_push_and_running_it_again_sends_only_the_rest(hub, saved):
    hub.fail("POST", "/commit/", 503, times=100)
    with pytest.raises(HubError) as error:
        push_folder(saved, "user/dit")
    assert "the Hub answered 503: run the same command again later; what arrived is not sent again" in one_line(error)
    assert hub.count("POST", "/commit/") == 4
    hub.faults.clear()
    push_folder(saved, "user/dit")
    assert hub.count("PUT", "/lfs/") == 2
    assert set(contents(saved)) < set(hub.repository("user/dit").files())


def test_connection_cut_in_the_middle_of_an_upload_is_taken_up_again(hub, saved):
    hub.cut("PUT", "/lfs/", after=5000)
    hub.cut("POST", "/commit/", after=100)
    push_folder(saved, "user/dit")
    assert [entry.status for entry in hub.requests("PUT", "/lfs/")].count(0) == 1
    for name, content in contents(saved).items():
        assert hub.repository("user/dit").files()[name] == content


@pytest.mark.parametrize(("method", "path"), [("POST", "/commit/"), ("PUT", "/lfs/"), ("GET", "whoami")])
def test_hub_that_never_answers_does_not_hang_a_push(hub, saved, monkeypatch, method, path):
    monkeypatch.setattr("dit_hf.network.LONGEST_SILENCE", 3.0)  # another request that takes longer is tried again
    close_session()
    hub.stall(method, path)
    push_folder(saved, "user/dit")
    assert hub.ends_of_stalls.get(timeout=hub.STALL_SECONDS)  # the client did not wait for ever
    assert "model_index.json" in hub.repository("user/dit").files()
    close_session()


def test_pull_request_is_not_opened_twice_where_an_answer_may_be_lost(hub, saved):
    hub.cut("POST", "/commit/", after=100)
    with pytest.raises(HubError, match="no connection"):
        push_folder(saved, "user/dit", create_pr=True)
    assert hub.count("POST", "/commit/") == 1


# --- downloads ---------------------------------------------------------------------------------------------------


def test_connection_cut_in_the_middle_of_a_download_is_taken_up_again(hub, pipeline, saved, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB, and a resume begins at a whole one
    push_folder(saved, "user/dit")
    hub.cut("GET", "transformer/model.safetensors", after=3000)
    loaded = DiTPipeline.from_pretrained("user/dit", cache_dir=constants.HF_HUB_CACHE)
    np.testing.assert_array_equal(image_of(loaded), image_of(pipeline))
    requests = hub.requests("GET", "resolve/.*transformer/model.safetensors")
    assert [(entry.status, entry.sent) for entry in requests] == [(200, 3000), (206, 45664 - 3000)]


def test_downloaded_bytes_are_held_against_the_hub_s_hashes(hub, saved):
    push_folder(saved, "user/dit")
    folder = Path(snapshot_download("user/dit"))
    assert set(verify_snapshot(folder, "user/dit")) == {*contents(saved), ".gitattributes"}
    for name in ("vae/diffusion_pytorch_model.safetensors", "model_index.json"):
        file = (folder / name).resolve()
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # the same length
        with pytest.raises(HubError, match=f"{name} does not have the hash that user/dit says"):
            verify_snapshot(folder, "user/dit")
        file.write_bytes(good)
    (folder / "more.py").write_text("")
    with pytest.raises(HubError, match=r"more.py is not in user/dit"):
        verify_snapshot(folder, "user/dit")


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"])
def test_pipeline_with_wrong_bytes_in_the_cache_is_refused_offline_too(hub, saved, monkeypatch, name):
    push_folder(saved, "user/dit")
    cache = {"cache_dir": constants.HF_HUB_CACHE}
    DiTPipeline.from_pretrained("user/dit", **cache)
    file = Path(try_to_load_from_cache("user/dit", name)).resolve()
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if name.endswith("safetensors") else good + b" ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"{name} of user/dit is damaged in the cache: delete {file}"):
        DiTPipeline.from_pretrained("user/dit", **cache)
    DiTPipeline.from_pretrained("user/dit", verify=False, **cache)
    file.write_bytes(good)
    DiTPipeline.from_pretrained("user/dit", **cache)


@pytest.mark.slow
def test_every_flipped_bit_and_truncation_of_weights_in_the_cache_is_named(hub, saved):
    push_folder(saved, "user/dit")
    name = "transformer/model.safetensors"
    file = (Path(snapshot_download("user/dit")) / name).resolve()
    good, random = file.read_bytes(), np.random.default_rng(0)
    assert check_cached("user/dit") == hub.repository("user/dit").refs["main"].oid
    damages = [good[: random.integers(len(good))] for _ in range(100)]
    for position in random.integers(len(good), size=1000):
        damages.append(good[:position] + bytes([good[position] ^ 1 << random.integers(8)]) + good[position + 1 :])
    for damaged in damages:
        file.write_bytes(damaged)
        with pytest.raises(HubError, match=f"{name} of user/dit is damaged in the cache"):
            check_cached("user/dit")


def test_cache_without_links_is_held_against_the_hub_where_it_can_be_asked(hub, saved, caplog):
    push_folder(saved, "user/dit")
    folder = Path(snapshot_download("user/dit"))
    for path in [path for path in folder.rglob("*") if path.is_symlink()]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert check_cached("user/dit") == folder.name
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(HubError, match=r"model_index\.json does not have the hash that user/dit says"):
        check_cached("user/dit")
    check_cached("user/dit", local_files_only=True)
    assert "nothing is compared without the network" in caplog.text


def test_usual_arguments_choose_what_is_loaded(hub, saved, monkeypatch):
    push_folder(saved, "user/dit", revision="v2")
    token = os.environ["HF_TOKEN"]
    monkeypatch.delenv("HF_TOKEN")
    chosen = {"revision": "v2", "token": token, "cache_dir": constants.HF_HUB_CACHE}
    half = DiTPipeline.from_pretrained("user/dit", dtype=torch.bfloat16, use_safetensors=True, **chosen)
    assert {half.transformer.dtype, half.vae.dtype} == {torch.bfloat16}
    with pytest.raises(HubError, match="the repository lacks a file"):
        DiTPipeline.from_pretrained("user/dit", **{**chosen, "revision": "main"})
    with pytest.raises(HubError, match="the token may not see it"):
        DiTPipeline.from_pretrained("user/dit", **{**chosen, "token": False})
    with pytest.raises(ValueError, match="variant=fp16"):
        DiTPipeline.from_pretrained("user/dit", variant="fp16", **chosen)
    DiTPipeline.from_pretrained("user/dit", local_files_only=True, **{**chosen, "token": None})


def test_loading_offline_says_which_commit(hub, saved, caplog):
    oid = push_folder(saved, "user/dit").oid
    cache = {"cache_dir": constants.HF_HUB_CACHE}
    DiTPipeline.from_pretrained("user/dit", **cache)
    assert "this is commit" not in caplog.text
    DiTPipeline.from_pretrained("user/dit", local_files_only=True, **cache)
    assert f"user/dit: the network was not asked, this is commit {oid} of the cache" in caplog.text


def test_missing_and_closed_repositories_are_told_apart(hub, saved, monkeypatch):
    push_folder(saved, "user/dit")
    for arguments, remedy in [
        ({"repo_id": "user/none"}, "there is no such repository, or the token may not see it"),
        ({"repo_id": "user/dit", "revision": "v9"}, "the repository has no such revision"),
    ]:
        with pytest.raises(HubError) as error:
            verify_snapshot(saved, **arguments)
        assert remedy in one_line(error)
    monkeypatch.setenv("HF_TOKEN", hub.add_user("stranger"))
    with pytest.raises(HubError, match="the token may not see it"):
        verify_snapshot(saved, "user/dit")
    repository = hub.repository("user/dit")
    repository.private, repository.gated = False, True
    with pytest.raises(GatedRepoError):
        snapshot_download("user/dit")
    repository.granted.add("stranger")
    assert json.loads((Path(snapshot_download("user/dit")) / "model_index.json").read_text())


# --- beside a training -------------------------------------------------------------------------------------------


def test_failed_push_beside_a_training_is_logged_and_the_next_one_arrives(hub, saved, caplog):
    push = BackgroundPush("user/dit", NoCard())
    hub.fail("POST", "/commit/", 500, times=4)
    push.start(saved, "Step 10")
    push.wait()
    assert "Step 10: the push failed, the training continues: user/dit at http" in caplog.text
    assert "at http" in push.wait()  # the reason, for status.json
    with pytest.raises(HubError, match="user/dit does not have them: user/dit at .*the Hub answered 500.*it pushes w"):
        push.check_arrived()
    push.start(saved, "Step 20")
    assert push.wait() is None
    push.check_arrived()
    assert hub.repository("user/dit").refs["main"].message == "Step 20"


def test_pipeline_of_a_training_replaces_the_one_before_as_a_whole(pipeline, tmp_path):
    """Written beside it and renamed; `tests/test_files.py` cuts this off before each operation."""
    seen: list[str] = []

    class Card:
        def write(self, pipeline: DiTPipeline, folder: Path) -> None:
            assert (tmp_path / "pipeline").exists() == bool(seen)
            assert folder.name.startswith(".pipeline.")
            (folder / "README.md").write_text(f"card {len(seen)}")

    for _ in range(2):
        save_training_pipeline(pipeline, tmp_path, Card())
        seen += [(tmp_path / "pipeline" / "README.md").read_text()]
        assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    assert seen == ["card 0", "card 1"]
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
