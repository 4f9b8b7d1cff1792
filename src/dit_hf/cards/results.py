"""Results of an evaluation in a card: metadata that the Hub reads, and a table for people."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .page import PIPELINE_TAG, table_of_columns
from .stamp import stamped_as

HEADING = "## Evaluation"
# Settings of the samples that a card shows. The JSON file of an evaluation holds all of them.
SHOWN = ("seed", "label_scheme", "guidance_scale", "guidance_channels", "num_inference_steps", "scheduler", "rounding")

SHARES = ("precision", "recall", "density", "coverage")
ZERO = (
    "A 0 in this table was measured; no value is missing. Precision and density are 0 if no sample lies as near to a "
    "real image as the neighbours of that image among the real ones, coverage is then 0 too, and recall is 0 in the "
    "reverse case. A slight noise in every sample suffices for that if the features react to texture."
)


def eval_results(
    metrics: Mapping[str, float], spread: Mapping[str, float], settings: Mapping[str, Any]
) -> list[EvalResult]:
    """Write the fields of a `dit_hf.evaluation.Evaluation` as the Hub's metadata, each metric with its settings.

    Args:
        metrics: Value of each metric, by its name.
        spread: Standard error of the metrics that have one, by name.
        settings: Settings of the evaluation.
    """
    samples = settings.get("samples") or {}
    draws = samples if isinstance(samples, list) else [samples]  # several draws have a seed each
    reference = settings.get("reference") or {}
    stated: dict[str, Any] = {"images": settings["num_images"], "features": settings["extractor"]["name"]}
    stated |= {name: draws[0][name] for name in SHOWN if draws[0].get(name) is not None}
    if isinstance(samples, list):
        stated["seed"] = ", ".join(str(draw["seed"]) for draw in draws)
    if reference.get("num_images"):
        stated["reference images"] = reference["num_images"]
    name = Path(str(reference.get("source") or "unnamed")).name  # without the path on this machine
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            dataset_type=name,
            dataset_name=name,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
            metric_args={**stated, **({"+-": round(spread[metric], 4)} if metric in spread else {})},
        )
        for metric, value in metrics.items()
    ]


def evaluation_table(results: Sequence[EvalResult]) -> str:
    """Write results as a Markdown table, each with its settings."""
    if not results:
        return "No evaluation was made."
    rows = [
        (
            result.metric_name or result.metric_type,
            result.metric_value,
            result.dataset_name,
            ", ".join(f"{name} {value}" for name, value in (result.metric_args or {}).items()),
        )
        for result in results
    ]
    table = table_of_columns(["measure", "value", "against", "settings"], rows)
    has_zero = any(result.metric_type in SHARES and result.metric_value == 0 for result in results)
    return f"{table}\n\n{ZERO}" if has_zero else table


def write_results(
    card: str | Path, metrics: Mapping[str, float], spread: Mapping[str, float], settings: Mapping[str, Any]
) -> None:
    """Put the results of an evaluation into a card: its metadata and its section "Evaluation" are made anew.

    Args:
        card: File `README.md` of a model.
        metrics: Value of each metric, by its name.
        spread: Standard error of the metrics that have one, by name.
        settings: Settings of the evaluation.

    Raises:
        ValueError: If there is no such file.
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
    place = re.search(rf"^{HEADING}$.*?(?=^## |\Z)", old.text, re.MULTILINE | re.DOTALL)
    if place:
        text = f"{old.text[: place.start()]}{section}\n{old.text[place.end() :]}".rstrip() + "\n"
    else:
        text = f"{old.text.rstrip()}\n\n{section}"
    before = path.read_text(encoding="utf-8")
    path.write_text(stamped_as(f"---\n{data.to_yaml()}\n---\n{text}", before), encoding="utf-8")
