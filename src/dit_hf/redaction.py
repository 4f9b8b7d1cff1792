"""What must not leave this machine: secrets, paths of this machine, and the signatures in addresses."""

import json
import re
from pathlib import Path

from huggingface_hub import get_token

# Kind of secret -> what such a secret looks like in a file.
SECRETS: dict[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40,})"),
    "a key of an API": re.compile(rb"\bsk-[A-Za-z0-9_-]{32,}"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# The password in https://user:password@host, and the query in https://host/file?Signature=..., which opens the file.
SECRETS_IN_ADDRESSES = re.compile(r"(?<=://)[^/\s@]+@|(?<=\?)[^\s'\"]+=[^\s'\"]+")


def find_secret(content: bytes) -> str | None:
    """Name the first secret or path of this machine that a file's content holds.

    Args:
        content: Bytes of the file.

    Returns:
        The kind, such as "a GitHub token", "the token in use" or "a path of this machine"; None if there is nothing.
    """
    for kind, pattern in SECRETS.items():
        if pattern.search(content):
            return kind
    token = get_token()
    if token and token.encode() in content:
        return "the token in use"
    return "a path of this machine" if any(path in content for path in _home_paths()) else None


def _home_paths() -> list[bytes]:
    """The home folder as a text may write it: as it is, and with the backslashes of Windows doubled, as in JSON."""
    home = Path.home()
    if home == Path(home.anchor):  # a home of "/" begins every path
        return []
    whole = str(home / "x")[:-1]
    return list(dict.fromkeys([whole.encode(), json.dumps(whole)[1:-1].encode()]))


def without_secrets(text: str) -> str:
    """Take passwords and signatures out of the addresses in a text, so that the text may be logged."""
    return SECRETS_IN_ADDRESSES.sub("", text)
