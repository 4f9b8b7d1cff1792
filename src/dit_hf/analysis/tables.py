"""Tables of text: the cost of a model, the cost of the paper's models, and measured rows under the paper's results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration_dit import PAPER_SIZES, DiTConfig
from ..places import describe_folder, describe_missing
from .flops import (
    STABLE_DIFFUSION_VAE,
    TRAINING_FACTOR,
    count_activations,
    count_gmacs,
    count_macs,
    count_parameters,
    count_vae_macs,
)
from .quoted import BLOCKS_400K, FIDS_400K, GMACS_512, TABLES, Result


def read_config(model: str, **overrides: Any) -> DiTConfig:
    """Read the configuration of one of the paper's sizes, or of a folder.

    Args:
        model: Key of `PAPER_SIZES`, or folder of a pipeline or of a model.
        **overrides: Fields of `DiTConfig` that replace those read.

    Raises:
        ValueError: If `model` is neither such a key nor such a folder.
    """
    if model in PAPER_SIZES:
        return DiTConfig.from_name(model, **overrides)
    files = [Path(model, *inner, "config.json") for inner in ((), ("transformer",))]
    for file in filter(Path.is_file, files):
        return DiTConfig.from_dict({**json.loads(file.read_text(encoding="utf-8")), **overrides})
    told = describe_folder(Path(model), "config.json") if Path(model).is_dir() else describe_missing(model)
    raise ValueError(f"{model!r} is none of {', '.join(PAPER_SIZES)}, and {told}")


def read_vae_config(vae: str) -> Mapping[str, Any]:
    """Read the configuration of an autoencoder.

    Args:
        vae: Folder of the autoencoder or of a pipeline, or "sd" for the autoencoder of the paper.

    Raises:
        ValueError: If the folder holds no configuration.
    """
    if vae == "sd":
        return STABLE_DIFFUSION_VAE
    for file in filter(Path.is_file, (Path(vae, "config.json"), Path(vae, "vae", "config.json"))):
        return json.loads(file.read_text(encoding="utf-8"))
    told = describe_folder(Path(vae), "config.json") if Path(vae).is_dir() else describe_missing(vae)
    raise ValueError(f"pass sd, or the folder of an autoencoder: {told}")


def costs(
    config: DiTConfig,
    *,
    num_steps: int,
    guidance_scale: float,
    batch_size: int,
    train_steps: int,
    vae_config: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Count what a model computes and holds; `gmacs` are the paper's "Gflops", and `gflops` twice that.

    Args:
        config: Architecture, of any size and block design.
        num_steps: Number of steps of the sampler.
        guidance_scale: Scale of classifier-free guidance. Above 1, each step takes two forwards.
        batch_size: Number of images in a training step.
        train_steps: Number of training steps.
        vae_config: Configuration of the autoencoder. None leaves the autoencoder out.

    Raises:
        ValueError: If guidance is asked for and the model has no null class.
    """
    guided = guidance_scale > 1
    if guided and not config.has_null_class:
        raise ValueError(f"guidance_scale={guidance_scale}: the model has no null class to guide with, count without")
    macs, gmacs = count_macs(config), count_gmacs(config)
    sampling = gmacs * num_steps * (2 if guided else 1)
    counted = {
        "parameters": count_parameters(config),
        "tokens": config.grid_height_width[0] * config.grid_height_width[1],
        "gmacs": gmacs,
        "gflops": 2 * gmacs,
        "attention_share": macs.attention / macs.total,
        "gmacs_of_a_step_of_sampling": gmacs * (2 if guided else 1),
        "gmacs_of_a_sample": sampling,
        "gmacs_of_training": TRAINING_FACTOR * gmacs * batch_size * train_steps,
        "activation_mebibytes_of_an_image": 4 * count_activations(config) / 2**20,
        "activation_mebibytes_with_checkpointing": 4 * count_activations(config, checkpointing=True) / 2**20,
        "weights_and_adam_gibibytes": 4 * 5 * count_parameters(config) / 2**30,
    }
    if vae_config is not None:
        vae = count_vae_macs(vae_config, config.sample_height_width)
        counted["gmacs_of_vae_encoder"] = vae.encoder / 1e9
        counted["gmacs_of_vae_decoder"] = vae.decoder / 1e9
        counted["gmacs_of_an_image"] = sampling + vae.decoder / 1e9
    return counted


LINES = {  # key of `costs` -> name, value and unit, note, as they are printed
    "parameters": ("parameters", "{:,.0f}", "position embedding included"),
    "tokens": ("tokens", "{:,.0f}", ""),
    "gmacs": ("a forward", "{:,.3f} GMACs", "the paper's Gflops"),
    "gflops": ("", "{:,.3f} GFLOPs", "two per multiply-add"),
    "attention_share": ("share of attention", "{:.1%}", "scores and weighted sums"),
    "gmacs_of_a_step_of_sampling": ("a step of sampling", "{:,.3f} GMACs", "both forwards if guided"),
    "gmacs_of_a_sample": ("a sample", "{:,.1f} GMACs", "all steps, in latents"),
    "gmacs_of_training": ("the training", "{:.3e} GMACs", "3 x forward x batch x steps, as the paper"),
    "activation_mebibytes_of_an_image": ("activations", "{:,.1f} MiB an image", "float32, fused attention, training"),
    "activation_mebibytes_with_checkpointing": ("", "{:,.1f} MiB an image", "with gradient checkpointing"),
    "weights_and_adam_gibibytes": ("states", "{:,.2f} GiB", "weights, gradients, two of Adam, average; float32"),
    "gmacs_of_vae_encoder": ("VAE encoder", "{:,.1f} GMACs", "an image"),
    "gmacs_of_vae_decoder": ("VAE decoder", "{:,.1f} GMACs", "an image"),
    "gmacs_of_an_image": ("an image", "{:,.1f} GMACs", "all steps and the decoder"),
}


def format_costs(counted: Mapping[str, float]) -> str:
    """Format the result of `costs` as lines of text."""
    lines = [(name, form.format(counted[key]), note) for key, (name, form, note) in LINES.items() if key in counted]
    return "\n".join(f"{name:<20}{value:>24}  {note}".rstrip() for name, value, note in lines)


def paper_rows() -> list[dict[str, Any]]:
    """Count the paper's models, beside the numbers that the paper prints and its FID after 400,000 steps."""
    rows = []
    for name, size in PAPER_SIZES.items():
        rows.append(_paper_row(DiTConfig.from_name(name), name, 256, size.gmacs, FIDS_400K[name.removeprefix("DiT-")]))
    for block, printed in BLOCKS_400K.items():
        config = DiTConfig.from_name("DiT-XL/2", block_type=block)
        rows.append(_paper_row(config, "DiT-XL/2", 256, printed.gmacs, printed.fid))
    rows.append(_paper_row(DiTConfig.from_name("DiT-XL/2", sample_size=64), "DiT-XL/2", 512, GMACS_512, None))
    return rows


def _paper_row(config: DiTConfig, name: str, resolution: int, printed: float, fid: float | None) -> dict[str, Any]:
    return {
        "model": name,
        "resolution": resolution,
        "block_type": config.block_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "parameters": count_parameters(config),
        "gmacs": count_gmacs(config),
        "gmacs_in_the_paper": printed,
        "fid_400k_in_the_paper": fid,
    }


def format_paper_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the result of `paper_rows` as a table of text."""
    head = (
        f"{'model':<10}{'px':>5}  {'block':<16}{'layers':>6}{'width':>7}{'heads':>6}{'parameters':>14}"
        f"{'GMACs':>10}{'paper':>9}{'FID, paper':>12}"
    )
    lines = [head]
    for row in rows:
        fid = "-" if row["fid_400k_in_the_paper"] is None else f"{row['fid_400k_in_the_paper']:.2f}"
        lines.append(
            f"{row['model']:<10}{row['resolution']:>5}  {row['block_type']:<16}{row['layers']:>6}"
            f"{row['hidden_size']:>7}{row['heads']:>6}{row['parameters']:>14,}{row['gmacs']:>10.3f}"
            f"{row['gmacs_in_the_paper']:>9.2f}{fid:>12}"
        )
    return "\n".join(lines)


def result_of(name: str, metrics: Mapping[str, float]) -> Result:
    """Make a row of the paper's tables from the metrics of an evaluation.

    Args:
        name: Name of the row.
        metrics: Metrics by name, as `dit-hf evaluate` writes them under "metrics". A missing one becomes a dash.

    Raises:
        ValueError: If the FID or the Inception score is missing, as in an evaluation on other features.
    """
    values = {field: metrics.get(field) for field in Result._fields[1:]}  # the fields are named as the metrics
    if values["fid"] is None or values["inception_score"] is None:
        raise ValueError(
            f"the evaluation of {name} has the metrics {', '.join(metrics) or 'none'}: the paper's tables need fid and "
            "inception_score, which come from Inception's features"
        )
    return Result(name, **values)  # type: ignore[arg-type]


def read_result(file: Path) -> Result:
    """Read a row of the paper's tables from a file that `dit-hf evaluate --output` wrote.

    Raises:
        ValueError: If the file holds no metrics, or as in `result_of`.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
        raise ValueError(f"{file} has no metrics: pass a file that dit-hf evaluate --output wrote")
    return result_of(file.stem, content["metrics"])


def format_results(resolution: int, measured: Sequence[Result] = ()) -> str:
    """Format the paper's table 2 or 3 as text, with measured rows under the quoted ones.

    Args:
        resolution: Side of the images in pixels, 256 or 512.
        measured: Rows to add.

    Raises:
        ValueError: If the paper has no table for the resolution.
    """
    if resolution not in TABLES:
        raise ValueError(f"resolution={resolution}: the paper has tables of {' and '.join(map(str, TABLES))}")

    def line(row: Result) -> str:
        values = ["-" if value is None else f"{value:.2f}" for value in row[1:]]
        return f"{row.model:<28}" + "".join(f"{value:>10}" for value in values)

    titles = [
        f"{'ImageNet ' + str(resolution):<28}",
        *(f"{t:>10}" for t in ("FID", "sFID", "IS", "precision", "recall")),
    ]
    quoted = [line(row) for row in TABLES[resolution]]
    return "\n".join(["".join(titles), *quoted, *(["measured here:", *map(line, measured)] if measured else [])])
