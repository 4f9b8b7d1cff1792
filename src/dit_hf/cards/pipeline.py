"""The model card of a pipeline: metadata for the Hub, and a page for people, generated from what is known.

No token, user name or path of the machine enters it: of the settings of a training only those in `RECIPE` are told, and
data sets and VAEs only by an id on the Hub.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..analysis import count_gmacs
from ..configuration_dit import DiTConfig
from ..hub.files import find_secret

CARD = "README.md"
SAMPLES, LOSS_CURVE = "samples.png", "loss.png"
LOCAL_ID = "."  # a card in a folder loads "this folder"; a push puts the repository's id in its place
PIPELINE_TAG = "unconditional-image-generation"  # the Hub's nearest: it has none for images of a class

# Settings of a training that a card tells -> how it calls them.
RECIPE = {
    "objective": "objective",
    "beta_schedule": "noise schedule",
    "num_train_timesteps": "timesteps",
    "resolution": "resolution",
    "random_flip": "horizontal flips",
    "num_jitters": "jittered variants of each image",
    "train_batch_size": "images of a batch on one process",
    "gradient_accumulation_steps": "batches of a step",
    "learning_rate": "learning rate",
    "lr_scheduler": "its course",
    "lr_warmup_steps": "warm-up steps",
    "adam_beta1": "AdamW's beta 1",
    "adam_beta2": "AdamW's beta 2",
    "adam_weight_decay": "weight decay",
    "max_grad_norm": "clipping of the gradient's norm",
    "ema_decay": "decay of the average (EMA), whose weights these are",
    "mixed_precision": "mixed precision",
    "seed": "seed",
}

TEMPLATE = """\
# {title}

{summary}
{samples}
## Use

With the package `dit-hf`:

```python
{snippet}
```

Without it, with diffusers alone. The code that lies beside the weights runs then, so read it, and name a commit of it
with `revision=`:

```python
{snippet_without_package}
```

The network alone loads with transformers: `AutoModel.from_pretrained("{model_id}", subfolder="transformer")` after
`import dit_hf`, or with `trust_remote_code=True`.

## Architecture

| | |
|---|---|
{architecture}

## Training

{training}
{loss_curve}
## Evaluation

{evaluation}

## Limits and bias

{limits}

## Citation

```bibtex
@article{{peebles2022scalable,
  title   = {{Scalable Diffusion Models with Transformers}},
  author  = {{Peebles, William and Xie, Saining}},
  journal = {{arXiv preprint arXiv:2212.09748}},
  year    = {{2022}}
}}
```
"""

SNIPPET = """\
import torch
from dit_hf import DiTPipeline

pipeline = DiTPipeline.from_pretrained("{model_id}")
image = pipeline({call}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("sample.png")"""

SNIPPET_WITHOUT_PACKAGE = """\
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{model_id}", trust_remote_code=True)
image = pipeline({call}, generator=torch.Generator().manual_seed(0)).images[0]
image.save("sample.png")"""

LIMITS = """\
The model knows the images that it was trained on and nothing else: there is no text, only {classes}. Images of people,
writing and fine structures come out wrong more often than others. What is frequent in the data is frequent in the
samples, with the same one-sidedness; a small data set is partly memorised. Samples are no evidence of anything, and are
not meant to pass as photographs."""
IMAGENET_LIMITS = """ \
ImageNet was gathered from the internet through English nouns: its pictures show some regions, cultures and kinds of
people far more than others, people are in it without their consent, and its terms allow research only."""


def make_card(
    pipeline: DiffusionPipeline,
    *,
    model_id: str = LOCAL_ID,
    license: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    results: Sequence[EvalResult] = (),
    has_samples: bool = False,
    has_loss_curve: bool = False,
) -> ModelCard:
    """Generate the card of a pipeline.

    Args:
        pipeline: the model, which tells its architecture, classes and guidance.
        model_id: what the snippets load; `LOCAL_ID` for the folder that the card lies in.
        license: of the weights, as the Hub calls it ("cc-by-nc-4.0"); None leaves it open, and says so.
        datasets: ids on the Hub.
        base_model: id on the Hub of the model that this one was made from.
        recipe: how it was trained, by names that people understand.
        results: evaluation results; `metric_args` holds the settings of each.
        has_samples: whether `SAMPLES` lies beside the card.
        has_loss_curve: whether `LOSS_CURVE` does.

    Raises:
        ValueError: if what was given holds a secret or a path of this machine.
    """
    config = pipeline.transformer.config
    title = "DiT" if model_id == LOCAL_ID else model_id.split("/")[-1]
    conditional = config.num_classes > 0
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=PIPELINE_TAG,
        tags=["dit", "diffusion", "dit-hf", *(["class-conditional-image-generation"] if conditional else [])],
        license=license,
        datasets=list(datasets) or None,
        base_model=base_model,
        model_name=title,
        eval_results=list(results) or None,
        arxiv="2212.09748",
    )
    call = _call(pipeline)
    text = TEMPLATE.format(
        title=title,
        model_id=model_id,
        summary=_summary(config) + ("" if license else "\n\nIts author has not chosen a licence: ask before using it."),
        samples=f"\n![samples of the model]({SAMPLES})\n" if has_samples else "",
        snippet=SNIPPET.format(model_id=model_id, call=call),
        snippet_without_package=SNIPPET_WITHOUT_PACKAGE.format(model_id=model_id, call=call),
        architecture=_table(_architecture(pipeline)),
        training=("| | |\n|---|---|\n" + _table(recipe)) if recipe else "Nothing is known of it here.",
        loss_curve=f"\n![the training loss]({LOSS_CURVE})\n" if has_loss_curve else "",
        evaluation=evaluation_table(results),
        limits=LIMITS.format(classes=f"{config.num_classes} classes" if conditional else "noise")
        + (IMAGENET_LIMITS if any("imagenet" in name.lower() for name in datasets) else ""),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    secret = find_secret(str(card).encode())
    if secret:
        raise ValueError(f"the card would hold {secret}: take it out of recipe, results or base_model")
    return card


def make_training_card(pipeline: DiffusionPipeline, output_dir: Path, license: str | None = None) -> ModelCard:
    """Generate the card of a training from the files that it wrote.

    Args:
        pipeline: the model with its averaged weights.
        output_dir: holds `settings.yaml`, `metrics.jsonl`, and perhaps `SAMPLES` and `LOSS_CURVE`.
        license: as in `make_card`.
    """
    settings = yaml.safe_load((output_dir / "settings.yaml").read_text(encoding="utf-8"))
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    recipe: dict[str, Any] = {}
    dataset, vae = (_hub_id(settings[name]) for name in ("dataset_name", "vae_name_or_path"))
    recipe["data set"] = f"`{dataset}`, {settings['dataset_split']}" if dataset else "a local one"
    recipe["VAE"] = f"`{vae}`" if vae else "a local one, saved with the model"
    recipe |= {name: settings[key] for key, name in RECIPE.items() if settings.get(key) is not None}
    if lines:
        last = json.loads(lines[-1])
        recipe |= {
            "steps": last["step"],
            "images seen": last["images_seen"],
            "last training loss": f"{last['loss']:.4f}",
        }
    return make_card(
        pipeline,
        license=license,
        datasets=[dataset] if dataset else [],
        recipe=recipe,
        has_samples=(output_dir / SAMPLES).is_file(),
        has_loss_curve=(output_dir / LOSS_CURVE).is_file(),
    )


def write_training_card(
    pipeline: DiffusionPipeline, folder: Path, output_dir: Path, license: str | None = None
) -> None:
    """Write the card of a training, and the pictures it shows, into the pipeline's folder."""
    make_training_card(pipeline, output_dir, license).save(folder / CARD)
    for name in (SAMPLES, LOSS_CURVE):
        if (output_dir / name).is_file():
            (folder / name).write_bytes((output_dir / name).read_bytes())


def _hub_id(name: str) -> str | None:
    """The name where it is an id on the Hub, None where it is a path."""
    is_path = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    return None if is_path else name


def _summary(config: DiTConfig) -> str:
    height, width = config.sample_height_width
    of_what = f"{config.num_classes} classes" if config.num_classes else "no classes (unconditional)"
    return (
        "A Diffusion Transformer ([Peebles & Xie 2022](https://arxiv.org/abs/2212.09748)) that generates images of "
        f"{of_what} from {height} x {width} latents."
    )


def _call(pipeline: DiffusionPipeline) -> str:
    """The arguments of a snippet: a class of the middle by name, else by id."""
    config = pipeline.transformer.config
    if not config.num_classes:
        return "num_images=1, guidance_scale=1"
    middle = config.num_classes // 2
    names = [name for name, label_id in pipeline.labels.items() if label_id == middle]
    label = json.dumps(names[0], ensure_ascii=False) if names else str(middle)
    return f"class_labels=[{label}]" + ("" if config.has_null_class else ", guidance_scale=1")


def _architecture(pipeline: DiffusionPipeline) -> dict[str, Any]:
    config = pipeline.transformer.config
    height, width = config.sample_height_width
    return {
        "size": config.paper_size or "none of the paper's",
        "conditioning of the blocks": config.block_type,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "patch size": config.patch_size,
        "latents (channels, height, width)": f"{config.in_channels}, {height}, {width}",
        "classes": config.num_classes or "none",
        "parameters": f"{sum(parameter.numel() for parameter in pipeline.transformer.parameters()):,}",
        "multiply-adds of a forward": f"{count_gmacs(config):.2f} * 10^9",
        "variance": "learned" if config.learn_sigma else "fixed",
        "scheduler": type(pipeline.scheduler).__name__,
        "channels that guidance moves": pipeline.config.guidance_channels,
    }


def evaluation_table(results: Sequence[EvalResult]) -> str:
    """The results as a Markdown table, each with its settings."""
    if not results:
        return "No evaluation was made."
    rows = [
        f"| {result.metric_name or result.metric_type} | {result.metric_value} | {result.dataset_name} | "
        f"{', '.join(f'{name} {value}' for name, value in (result.metric_args or {}).items())} |"
        for result in results
    ]
    return "\n".join(["| measure | value | against | settings |", "|---|---|---|---|", *rows])


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
