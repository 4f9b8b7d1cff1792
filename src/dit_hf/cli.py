"""The command line `dit-hf`: parses and calls, nothing else. Heavy imports wait until a command needs them."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from huggingface_hub.errors import HTTPError

from . import __version__

Form = Literal["dit_hf", "original", "diffusers"]
Dtype = Literal["float32", "bfloat16", "float16"]
Mode = Literal["exact", "adm_float16"]
MANY = "Many images"

app = typer.Typer(
    name="dit-hf",
    help="Diffusion Transformers (DiT) in the Hugging Face ecosystem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # `main` says it in one line
    # --num_images, as the examples have it, is --num-images
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dit-hf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _parse_labels(text: str) -> list[int | str]:
    """Turn "3, panda face" into [3, "panda face"]: digits are ids, all else are names."""
    labels = [label.strip() for label in text.split(",")]
    return [int(label) if label.isdecimal() else label for label in labels if label]


def _parse_seeds(text: str) -> tuple[int, ...]:
    """Turn "0, 1" into (0, 1)."""
    seeds = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"--seeds {text!r}: write whole numbers from 0 on, separated by commas, such as 0,1")
    return tuple(map(int, seeds))


def _refuse(options: dict[str, Any], why: str) -> None:
    """Refuse options that would be ignored."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} {why}")


def _place_of_many(output_dir: Path | None, npz: Path | None) -> Path | None:
    if output_dir and npz:
        raise ValueError("--output-dir and --npz are two forms of the same: give one of them")
    if npz and npz.suffix != ".npz" or output_dir and output_dir.suffix == ".npz":
        raise ValueError(f"{npz or output_dir}: the file of --npz must end in .npz, the folder must not")
    return output_dir or npz


def _check_format(output: Path) -> Path:
    from PIL import Image

    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:  # some can be read only
        raise ValueError(f"--output {output} names no image format that can be written: end it with .png or .jpg")
    return output


def _save_grid(images: list[Any], num_images_per_label: int, output: Path) -> None:
    from diffusers.utils import make_image_grid
    from PIL import Image

    columns = num_images_per_label if num_images_per_label > 1 else math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    empty = Image.new("RGB", images[0].size, "white")
    output.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(images + [empty] * (rows * columns - len(images)), rows, columns).save(output)


@app.command(
    epilog='Example: dit-hf generate examples/assets/dit-emoji --class-labels "panda face, 7" --output pandas.png; '
    "or many: torchrun --nproc-per-node 2 --no-python dit-hf generate MODEL --num-images 50000 --npz samples.npz"
)
def generate(
    model: Annotated[str, typer.Argument(help="A pipeline's folder, or its id on the Hub.", show_default=False)],
    class_labels: Annotated[
        str | None, typer.Option(help="Ids or names of classes, separated by commas; none for an unconditional model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The one image to write; several samples become a grid.", show_default="out.png")
    ] = None,
    num_images_per_label: Annotated[
        int | None, typer.Option(min=1, help="Images of each class: one row of the grid.", show_default="1")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="How many in all: of many, or of an unconditional model.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="Strength of classifier-free guidance, 1 is none; 4 where the model has guidance.", min=0),
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Guide only between these fractions of the steps: 0.25 0.75 is the middle half.", metavar="A B"
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the scheduler; its usual number when not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise, and of random labels.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="What the model computes in; bfloat16 suits newer GPUs.")] = "float32",
    output_dir: Annotated[
        Path | None, typer.Option(rich_help_panel=MANY, help="A new folder for a PNG of each, and their labels.")
    ] = None,
    npz: Annotated[
        Path | None, typer.Option(rich_help_panel=MANY, help="Instead, one file in ADM's form: arr_0, N x H x W x 3.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(rich_help_panel=MANY, help="random (if not given), balanced, or a file with one on each line."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(rich_help_panel=MANY, min=1, help="At once on each process.", show_default="32")
    ] = None,
) -> None:
    """Sample images of the given classes into one file; or many, on any number of processes, into a folder or an npz.

    Of many images, each depends on the seed and its number alone, and the same command goes on after a kill.
    """
    import torch
    from accelerate import PartialState

    place = _place_of_many(output_dir, npz)
    if place:
        one = {"--class-labels": class_labels, "--output": output, "--num-images-per-label": num_images_per_label}
        _refuse(one, "is for one file: with --output-dir or --npz use --labels and --num-images")
    else:
        _refuse({"--labels": labels, "--batch-size": batch_size}, "is for many images: give --output-dir or --npz too")
        _refuse({"--num-images": num_images if class_labels else None}, "counts all: use --num-images-per-label")
        output = _check_format(output or Path("out.png"))

    from .generation import generate_with_pipeline
    from .pipeline_dit import DiTPipeline

    pipeline = DiTPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    if guidance_scale is None:
        guidance_scale = 4.0 if pipeline.transformer.config.has_null_class else 1.0
    arguments: dict[str, Any] = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
    arguments["guidance_interval"] = guidance_interval
    if place:
        arguments |= {"labels": labels, "seed": seed, "batch_size": batch_size or 32}
        written = generate_with_pipeline(pipeline, place, num_images, **arguments)
        PartialState().print(f"wrote {written}")  # once for all processes
        return
    if class_labels is None:
        _refuse({"--num-images-per-label": num_images_per_label}, "needs --class-labels: use --num-images")
        arguments["num_images"] = num_images
    else:
        arguments |= {"class_labels": _parse_labels(class_labels), "num_images_per_label": num_images_per_label or 1}
    pipeline = pipeline.to(torch.accelerator.current_accelerator() or "cpu")
    images = pipeline(generator=torch.Generator().manual_seed(seed), **arguments).images
    assert output is not None
    _save_grid(images, num_images_per_label or 1, output)
    typer.echo(f"wrote {len(images)} images to {output}")


@app.command(epilog="Example: dit-hf convert DiT-XL-2-256x256.pt DiT-XL-2-256 --vae stabilityai/sd-vae-ft-ema")
def convert(
    source: Annotated[
        str, typer.Argument(help="A checkpoint of the original, a pipeline's folder, or its id.", show_default=False)
    ],
    destination: Annotated[
        Path, typer.Argument(help="A new folder; a .pt or .safetensors file with --to original.", show_default=False)
    ],
    to: Annotated[
        Form, typer.Option(help="Whose form to write.", metavar="dit_hf|original|diffusers")  # which would read dit-hf
    ] = "dit_hf",
    vae: Annotated[
        str | None, typer.Option(help="The autoencoder's folder or id, for a checkpoint; none for a model of pixels.")
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="A scheduler of diffusers by name, such as DDIMScheduler; the source's if not given."),
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(min=1, help="For a checkpoint of a size that is not the paper's.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which weights of a training checkpoint: ema (when not given) or model.")
    ] = None,
    timestep_freq_shift: Annotated[
        float | None, typer.Option(help="1 for a model that was trained in diffusers; the original's is 0.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of the source on the Hub.")] = None,
    license: Annotated[
        str | None, typer.Option(help="For the card, as the Hub names it; what the source says when not given.")
    ] = None,
) -> None:
    """Convert a checkpoint or a pipeline to a complete folder that loads, or back to the original's checkpoint."""
    from . import conversion
    from .pipeline_dit import DiTPipeline

    told = {
        "num_attention_heads": num_attention_heads,
        "weights": weights,
        "timestep_freq_shift": timestep_freq_shift,
        "revision": revision,
        "vae": vae,
    }
    arguments: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if vae == "none":
        arguments["vae"] = None
    conversion.convert(DiTPipeline, source, destination, to, scheduler, license, **arguments)
    typer.echo(f"wrote {destination}")


@app.command(
    epilog="Example: dit-hf evaluate --model my/dit --num-images 50000 --reference VIRTUAL_imagenet256_labeled.npz; "
    "or --samples samples.npz; several processes: torchrun --nproc-per-node 8 --no-python dit-hf evaluate ..."
)
def evaluate(
    reference: Annotated[str | None, typer.Option(help="ADM's .npz, saved statistics, a folder or a data set.")] = None,
    samples: Annotated[str | None, typer.Option(help="ADM's .npz, a folder of images, or a data set.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead, a pipeline's folder or id: samples are drawn.")] = None,
    num_images: Annotated[int | None, typer.Option(min=1, help="How many samples; all if not given.")] = None,
    extractor: Annotated[str, typer.Option(help="inception, dinov2, or a class: my_network.py:Name.")] = "inception",
    weights: Annotated[str | None, typer.Option(help="The extractor's; downloaded if not given.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names, separated by commas; all if not given.")] = None,
    precision_recall: Annotated[
        Mode | None, typer.Option(help="adm_float16 as published; exact is better.", metavar="exact|adm_float16")
    ] = None,
    kid_subset_size: Annotated[int, typer.Option(min=2, help="Images of a subset of KID.")] = 1000,
    num_groups: Annotated[int, typer.Option(min=1, help="2 or more: standard errors, by leaving out parts.")] = 1,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the result and all settings.")] = None,
    card: Annotated[Path | None, typer.Option(help="A model card to write the result into.")] = None,
    save_reference: Annotated[Path | None, typer.Option(help="Save statistics of --samples, to compare later.")] = None,
    work_dir: Annotated[Path | None, typer.Option(help="Keeps features, to go on after a kill.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once on each process.")] = 64,
    resolution: Annotated[int | None, typer.Option(min=1, help="Side to crop images to.")] = None,
    split: Annotated[str, typer.Option(help="Of data sets.")] = "train",
    image_column: Annotated[str, typer.Option(help="Of data sets.")] = "image",
    label_column: Annotated[str, typer.Option(help="Of data sets.")] = "label",
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="With --model; 1, none, if not given.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="With --model; as usual if not given.")] = None,
    labels: Annotated[str | None, typer.Option(help="With --model: random, balanced, or a file of them.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --model.", show_default="0")] = None,
    num_seeds: Annotated[int | None, typer.Option(min=1, help="With --model: draw so often.", show_default="1")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="With --model.", show_default="float32")] = None,
) -> None:
    """Measure samples or a model: FID, sFID, Inception score, precision, recall and others, from one pass."""
    given = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps, "labels": labels}
    given |= {"seed": seed, "num_seeds": num_seeds, "dtype": dtype}
    sampling: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if (samples is None) == (model is None):
        raise ValueError("--samples and --model: give one of them")
    if (reference is None) == (save_reference is None):
        raise ValueError("--reference and --save-reference: give one of them")
    if samples is not None:
        _refuse({f"--{name.replace('_', '-')}": value for name, value in sampling.items()}, "is for --model")
    if save_reference is not None:
        compares = {"--model": model, "--output": output, "--card": card, "--metrics": metrics}
        _refuse(compares, "is for comparing: leave out --save-reference")

    from accelerate import PartialState

    from .evaluation import MetricSettings, run

    options = run.SourceOptions(batch_size, resolution, split, image_column, label_column)
    network = run.open_extractor(extractor, weights)
    limits: dict[str, Any] = {"num_images": num_images, "work_dir": work_dir}
    if save_reference is not None:
        run.save_statistics(str(samples), save_reference, network, options, **limits)
        PartialState().print(f"wrote {save_reference}")  # once for all processes
        return
    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    settings = MetricSettings(precision_recall_mode=precision_recall, kid_subset_size=kid_subset_size)
    compared = (str(reference), network, settings, options)
    if model is None:
        result = run.evaluate_source(str(samples), *compared, metrics=names, num_groups=num_groups, **limits)
    else:
        draws = run.SamplingOptions(**sampling)
        result = run.evaluate_model(model, *compared, draws, metrics=names, num_groups=num_groups, **limits)
    if PartialState().is_main_process:
        typer.echo(result.table())
        run.write_result(result, output, card)


@app.command(epilog="Example: dit-hf flops DiT-XL/2 --sample-size 64 --guidance-scale 1.5")
def flops(
    model: Annotated[
        str, typer.Argument(help="One of the paper's sizes, or a pipeline's or a model's folder.")
    ] = "DiT-XL/2",
    sample_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the latents; of the paper's sizes 32, which is 256 px.")
    ] = None,
    block_type: Annotated[
        str | None, typer.Option(help="in_context, cross_attention, adaln or adaln_zero; the model's if not given.")
    ] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 250,
    guidance_scale: Annotated[float, typer.Option(min=0, help="Above 1 each step takes two forwards.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step of training.")] = 256,
    train_steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 400_000,
    vae: Annotated[
        str | None, typer.Option(help="Count an autoencoder too: its folder, or sd for the paper's.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's models, counted and as printed, instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Count what a model computes and holds: multiply-adds (the paper's Gflops), parameters, memory, training."""
    import json

    from .analysis import tables

    if paper:
        rows = tables.paper_rows()
        typer.echo(json.dumps(rows, indent=2) if as_json else tables.format_paper_rows(rows))
        return
    overrides = {"sample_size": sample_size, "block_type": block_type}
    found = tables.costs(
        tables.read_config(model, **{name: value for name, value in overrides.items() if value is not None}),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        train_steps=train_steps,
        vae_config=None if vae is None else tables.read_vae_config(vae),
    )
    typer.echo(json.dumps(found, indent=2) if as_json else tables.format_costs(found))


@app.command(epilog="Example: dit-hf study out/study --budget-minutes 60")
def study(
    folder: Annotated[Path, typer.Argument(help="For results.csv, checkpoints and samples; a rerun goes on in it.")],
    recipe: Annotated[
        Path | None, typer.Option(help="A YAML file of what differs from the recipe of runs/fashion_mnist.yaml.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A folder of IDX files, or an image data set's folder or id on the Hub.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0,1, in their order; the recipe's if not given.")] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time; the same command goes on.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the hours that it would take, and stop.")] = False,
) -> None:
    """Train and measure miniatures of the paper's twelve models and four blocks; a rerun does only what is missing."""
    import logging
    import time
    from dataclasses import replace

    from .study.recipe import Recipe
    from .study.run import Study

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("dit_hf").setLevel(logging.INFO)
    deadline = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    chosen = Recipe() if recipe is None else Recipe.read(recipe)
    if dataset is not None:
        chosen = replace(chosen, dataset=dataset)
    if seeds is not None:
        chosen = replace(chosen, seeds=_parse_seeds(seeds))
    work = Study(chosen, folder)
    typer.echo(work.plan())
    if not plan:
        work.run(deadline)


@app.command(epilog="Example: dit-hf plot runs/results/fashion_mnist.csv --output-dir docs/images/study")
def plot(
    results: Annotated[Path, typer.Argument(help="A results.csv of dit-hf study.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="A folder for the PNG files.")] = Path("figures"),
    samples: Annotated[
        Path | None, typer.Option(help="The study's folder of samples, for the grid from the same noise.")
    ] = None,
    quoted: Annotated[bool, typer.Option(help="Draw the paper's own numbers beside, marked as quoted.")] = True,
) -> None:
    """Draw the paper's figures from a study's results."""
    from .analysis.figures import draw_all

    written, lacking = draw_all(results, output_dir, samples=samples, quoted=quoted)
    typer.echo("\n".join(f"wrote {path}" for path in written))
    if lacking:
        typer.echo(f"no rows yet for {', '.join(lacking)}")


@app.command(epilog="Example: dit-hf table evaluation.json --resolution 256")
def table(
    evaluations: Annotated[
        list[Path] | None, typer.Argument(help="Files of dit-hf evaluate, each a row more.", show_default=False)
    ] = None,
    resolution: Annotated[int, typer.Option(help="256 for the paper's table 2, 512 for its table 3.")] = 256,
) -> None:
    """Print the paper's results on ImageNet, quoted, with one's own evaluations under them."""
    from .analysis import tables

    typer.echo(tables.format_results(resolution, [tables.read_result(file) for file in evaluations or []]))


def main() -> None:
    """Run the command line; an error the user can put right is one line and exit status 1, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError, FloatingPointError, HTTPError) as error:
        typer.echo(f"dit-hf: {' '.join(str(error).split())}", err=True)
        sys.exit(1)
