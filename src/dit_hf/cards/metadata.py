"""Metadata that the Hub accepts at the top of a card: ids of licences, and ids of repositories.

The Hub refuses a commit whose card holds anything else, so both are checked before a training begins.
"""

import difflib
import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LICENSES_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"
LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl
    gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community unknown
    other
    """.split()
)
DATASET_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")


def check_license(license: str | None) -> None:
    """Refuse a licence that the Hub does not know by this id.

    Args:
        license: Id of the licence, such as "apache-2.0"; None if the author has chosen none.

    Raises:
        ValueError: If the Hub has no such id; the message names the closest one.
    """
    if license is None or license in LICENSES:
        return
    close = difflib.get_close_matches("-".join(license.lower().split()), LICENSES, n=1)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(
        f"license={license!r} is not an id of the Hub: {suggestion}The ids are listed at {LICENSES_PAGE}, and 'other' "
        "stands for a licence that is not listed"
    )


def check_ids(field: str, *ids: str) -> None:
    """Refuse names in a field of the metadata that cannot be repositories of the Hub.

    Args:
        field: Name of the field, for the message.
        *ids: Names, each "user/name".

    Raises:
        ValueError: If a name is no such id.
    """
    for name in ids:
        if not _is_repository_id(name):
            raise ValueError(f"{field}={name!r} is no repository of the Hub: write user/name, or leave it out")


def hub_id(name: str | None) -> str | None:
    """Return the repository of the Hub that a name of a model or data set stands for.

    Args:
        name: Name as a user writes it: "user/name", a path, a glob, or an address of data "hf://datasets/user/name/...".

    Returns:
        "user/name"; None for everything that is not on the Hub. A path that exists here is not on the Hub.
    """
    address = DATASET_ADDRESS.match(name or "")
    if address:
        return address[1]
    return name if name and _is_repository_id(name) and not os.path.exists(name) else None


def _is_repository_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1
