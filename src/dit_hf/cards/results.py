"""Results of an evaluation in a model card: metadata that the Hub reads, and a table for people."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .pipeline import evaluation_table

HEADING = "## Evaluation"
# What a card tells of the settings of `samples`; the JSON file holds all.
TOLD = ("seed", "label_scheme", "guidance_scale", "guidance_channels", "num_inference_steps", "scheduler", "rounding")


def eval_results(
    metrics: Mapping[str, float], spread: Mapping[str, float], settings: Mapping[str, Any]
) -> list[EvalResult]:
    """The fields of a `dit_hf.evaluation.Evaluation` as the Hub's metadata, each metric with what it depends on.

    Args:
        metrics: by name.
        spread: how far each varies.
        settings: of the evaluation.
    """
    samples = settings.get("samples") or {}
    seeds = [each["seed"] for each in samples] if isinstance(samples, list) else None
    first = samples[0] if isinstance(samples, list) else samples
    reference = settings.get("reference") or {}
    about: dict[str, Any] = {"images": settings["num_images"], "features": settings["extractor"]["name"]}
    about |= {name: first[name] for name in TOLD if first.get(name) is not None}
    if seeds is not None:
        about["seed"] = ", ".join(map(str, seeds))
    if reference.get("num_images"):
        about["reference images"] = reference["num_images"]
    name = Path(str(reference.get("source") or "unnamed")).name  # no path of this machine
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
            metric_args={**about, **({"+-": round(spread[metric], 4)} if metric in spread else {})},
        )
        for metric, value in metrics.items()
    ]


def write_results(
    card: str | Path, metrics: Mapping[str, float], spread: Mapping[str, float], settings: Mapping[str, Any]
) -> None:
    """Put the results of an evaluation into a card: its metadata, and its section "Evaluation", which is made anew.

    Args:
        card: a `README.md` that exists.
        metrics: as in `eval_results`.
        spread: as in `eval_results`.
        settings: as in `eval_results`.

    Raises:
        ValueError: if there is no card.
    """
    path = Path(card)
    if not path.is_file():
        raise ValueError(f"{path} is no file: name the model's README.md")
    old = ModelCard.load(path)
    results = eval_results(metrics, spread, settings)
    data = old.data
    data.model_name = data.model_name or path.resolve().parent.name
    data.eval_results = results
    section = f"{HEADING}\n\n{evaluation_table(results)}\n"
    found = re.search(rf"^{HEADING}$.*?(?=^## |\Z)", old.text, re.MULTILINE | re.DOTALL)
    if found:
        text = f"{old.text[: found.start()]}{section}\n{old.text[found.end() :]}".rstrip() + "\n"
    else:
        text = f"{old.text.rstrip()}\n\n{section}"
    path.write_text(f"---\n{data.to_yaml()}\n---\n{text}", encoding="utf-8")
