"""The code that a saved pipeline carries, and what that code can do only if the package is installed.

This file runs in two places: in the package, and beside the weights of a saved pipeline, as a part of the one file that
`write_code` makes of the pipelines and of what they import. There, only torch, diffusers and transformers are needed.
"""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

IN_PACKAGE = __name__.startswith("dit_hf.")  # otherwise this code was loaded with a model
AUTO_MAP = {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
RELATIVE_IMPORT = re.compile(r"^from \.", re.MULTILINE)


def import_for(purpose: str, module: str) -> Any:
    """Import a module of the package for a method that works only with the package.

    Args:
        purpose: What needs the module, such as "push_to_hub".
        module: Full name, such as "dit_hf.hub.push".

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "dit_hf":  # what the package itself needs is missing
            raise
        raise ImportError(f"{purpose} needs the package dit-hf: pip install dit-hf") from error


def write_code(folder: Path, transformer: Any) -> None:
    """Write the code of a pipeline and of its model into its folder, and name it in the model's configuration.

    transformers looks for the model's code at the root of a repository, diffusers beside the weights.
    """
    model = getattr(transformer, "_orig_mod", transformer)  # a compiled model wraps the original
    model_class = next(cls for cls in type(model).__mro__ if cls.__name__ == "DiTModel")
    model_source = _flat_source(Path(inspect.getfile(model_class)))
    this = Path(__file__)
    pipeline_source = _flat_source(this.with_name("image_pipelines.py") if IN_PACKAGE else this)
    sources = {"pipeline_dit.py": pipeline_source, "modeling_dit.py": model_source}
    for name, source in {**sources, "transformer/modeling_dit.py": model_source}.items():
        (folder / name).write_text(source, encoding="utf-8")
    remove_older_code(folder)  # transformers copies the code of a model that came with such a folder
    for config_file in folder.glob("*/*config.json"):
        update_json(config_file, **({"auto_map": AUTO_MAP} if config_file.parent.name == "transformer" else {}))


def remove_older_code(folder: Path) -> None:
    """Remove files of code that version 0.1.0 wrote, and that no saved folder has any more."""
    for name in ("configuration_dit.py", "transformer/configuration_dit.py"):
        (folder / name).unlink(missing_ok=True)


def update_json(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file, and remove the one that says where something was loaded from."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    content.pop("_name_or_path", None)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _flat_source(file: Path) -> str:
    """Return code as one file that stands alone; code that was loaded from the Hub is one already."""
    source = file.read_text(encoding="utf-8")
    if RELATIVE_IMPORT.search(source):
        source = import_for("saving this code", "dit_hf.hub.flatten").flatten(file)
    return source
