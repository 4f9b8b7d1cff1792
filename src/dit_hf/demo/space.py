"""A Space of the Hub that serves the page: its files, and pushing them in one commit.

The Space holds a copy of this package, so that it runs the version that made it, and its requirements are the versions
that are installed here. A model in a local folder is copied too; a model on the Hub is loaded from there.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ..hub.errors import one_line_errors
from ..hub.files import sent_files
from ..hub.push import check_push
from ..network import retried
from ..places import check_pipeline_source

PACKAGE = Path(__file__).parents[1]
FOLDER_OF_MODEL = "model"  # in the Space, if the model comes from a local folder

README = """\
---
title: {title}
emoji: 🎨
colorFrom: indigo
colorTo: pink
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Draw with a Diffusion Transformer, class by class
---

The page of `dit-hf demo`: pictures of a class, from a picture, of a part of a picture, and between two classes. It runs
on a CPU, on a GPU, and on ZeroGPU. The variable `MODEL` in the settings of the Space names another model.

`app.py` is the program, `dit_hf/` the package, `requirements.txt` the versions that it was made with.
"""

APP = '''\
"""A Space that draws with a Diffusion Transformer: the page of `dit-hf demo`."""

import contextlib
import os

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  ZeroGPU lends a GPU to the functions of the page; it has to come before torch

import torch

from dit_hf import DiTPipeline
from dit_hf.demo.limits import Limits
from dit_hf.demo.page import build_page
from dit_hf.demo.server import serve

MODEL = os.environ.get("MODEL", "{model}")
LIMITS = Limits(max_seconds=60)

pipeline = DiTPipeline.from_pretrained(MODEL).to("cuda" if torch.cuda.is_available() else "cpu")
page = build_page(pipeline, MODEL, LIMITS)

if __name__ == "__main__":
    serve(page, LIMITS)
'''


def write_requirements() -> str:
    """Return the requirements of this package, each pinned to the version that is installed."""
    names = [re.split(r"[^\w.-]", line)[0] for line in metadata.requires("dit-hf") or [] if "extra ==" not in line]
    versions = {name: metadata.version(name).partition("+")[0] for name in names}  # no local build such as +cpu
    return "".join(f"{name}=={version}\n" for name, version in versions.items())


def space_texts(model: str, title: str) -> dict[str, str]:
    """Return the files of a Space that are written for it, by name.

    Args:
        model: Id of the model on the Hub, or its folder in the Space.
        title: Title of the Space.
    """
    return {
        "README.md": README.format(title=title, gradio=metadata.version("gradio")),
        "app.py": APP.format(model=model),
        "requirements.txt": write_requirements(),
    }


def push_space(model: str, repo_id: str, *, private: bool = True, token: str | None = None) -> CommitInfo:
    """Make a Space that draws with a model, or renew it, in one commit.

    Args:
        model: Folder of a pipeline, which is copied into the Space, or its id on the Hub.
        repo_id: Space, "user/name"; it is created if it is missing.
        private: Whether the Space must be private; False for a Space that everybody sees.
        token: Token with write access; None takes the token of `hf auth login` or HF_TOKEN.

    Raises:
        HubError: If there is no network, no token or no right to write.
        ValueError: If there is no such model, if its folder holds a file that is never pushed, or if the Space must be
            private and is public.
    """
    check_pipeline_source(model, asks_for_each=True, token=token)
    folder = Path(model)
    files = {f"{FOLDER_OF_MODEL}/{name}": path for name, path in sent_files(folder).items()} if folder.is_dir() else {}
    files |= {f"dit_hf/{path.relative_to(PACKAGE).as_posix()}": path for path in sorted(PACKAGE.rglob("*.py"))}
    texts = space_texts(FOLDER_OF_MODEL if folder.is_dir() else model, repo_id.rpartition("/")[2])
    repo_id = check_push(repo_id, private=private, token=token, is_space=True)
    api = HfApi(token=token)
    additions = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    additions += [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    with one_line_errors(repo_id):
        api.preupload_lfs_files(repo_id, additions, repo_type="space")
        commit = retried(
            lambda: api.create_commit(repo_id, additions, commit_message=f"Draw with {model}", repo_type="space")
        )
    visibility = "private" if private else "PUBLIC"
    print(f"pushed to {commit.commit_url} ({visibility})", file=sys.stderr)  # noqa: T201
    return commit
