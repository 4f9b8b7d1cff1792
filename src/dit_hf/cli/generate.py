"""`dit-hf generate`: images of given classes in one file, or many images in a folder or an `.npz`."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .entry import Command, app, refuse
from .local_files import check_labels, check_num_images, check_saved_pipeline

MANY = "Many images"  # title of a group of options in the help


def parse_labels(text: str, names: Collection[str] = ()) -> list[int | str]:
    """Turn "3, panda face" into [3, "panda face"]: digits are ids, everything else is a name.

    Args:
        text: Labels, separated by commas.
        names: Names of the model's classes. Digits that are one of them are a name as well: in a model whose classes
            are called "0", "1", "10", "2" ..., "10" is the class of that name, whose id is 2. So is "beach, summer".
    """
    from ..sampling.class_names import labels_of_text

    return labels_of_text(text, names)


def _list_classes(model: str) -> None:
    """Print the id and the names of each class of a pipeline, without loading its weights."""
    from ..pipeline_dit import DiTPipeline

    labels = DiTPipeline.load_config(model).get("id2label") or {}
    if not labels:
        raise ValueError(f"{model} has no names of classes: use ids, from 0 on")
    for class_id, label in sorted((int(class_id), label) for class_id, label in labels.items()):
        typer.echo(f"{class_id:>4}  {label}")


def _check_destination(output_dir: Path | None, npz: Path | None) -> Path | None:
    """Return the folder or the `.npz` file for many images, or None if neither is given."""
    if output_dir and npz:
        raise ValueError("--output-dir and --npz are two formats of the same images: give one of them")
    if npz and npz.suffix != ".npz" or output_dir and output_dir.suffix == ".npz":
        raise ValueError(
            f"{npz or output_dir}: the file of --npz must end in .npz, the folder of --output-dir must not"
        )
    return output_dir or npz


def _check_resolution(pipeline: Any, resolution: int) -> None:
    from ..sampling.latents import latent_size

    try:
        latent_size(pipeline.transformer.config, pipeline.vae_scale_factor, resolution, resolution)
    except ValueError as error:
        raise ValueError(str(error).replace("height=", "--resolution ")) from error


def _check_format(output: Path) -> Path:
    from PIL import Image

    if Image.registered_extensions().get(output.suffix.lower()) not in Image.SAVE:  # Pillow only reads some formats
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


Model = Annotated[
    str,
    typer.Argument(
        callback=check_saved_pipeline, help="Folder of a pipeline, or its id on the Hub.", show_default=False
    ),
]
ClassLabels = Annotated[
    str | None,
    typer.Option(help="Classes to draw: ids or names, separated by commas. Leave out for an unconditional model."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Image file to write. Several images are arranged in a grid.", show_default="out.png"),
]
NumImagesPerLabel = Annotated[
    int | None,
    typer.Option(min=1, help="Number of images of each class, which form a row of the grid.", show_default="1"),
]
NumImages = Annotated[
    int | None,
    typer.Option(min=1, help="Number of all images, for an unconditional model, or with --output-dir or --npz."),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        help="Scale of classifier-free guidance; 1 is no guidance.",
        min=0,
        show_default="that of the pipeline; else 4 if the model was trained for guidance, or 1",
    ),
]
GuidanceInterval = Annotated[
    tuple[float, float] | None,
    typer.Option(
        help="Part of the steps that is guided, as two fractions: 0.25 0.75 is the middle half.",
        metavar="START END",
        show_default="all steps",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="Class name of a scheduler of diffusers, such as DPMSolverMultistepScheduler.",
        show_default="that of the pipeline",
    ),
]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Number of sampling steps.", show_default="that of the pipeline, else of the scheduler"),
]
Resolution = Annotated[
    int | None, typer.Option(min=1, help="Side of the images in pixels.", show_default="the one of the training")
]
PositionPolicy = Annotated[
    Literal["extend", "interpolate"] | None,
    typer.Option(
        help="How patches are placed at another resolution: extend for more content, interpolate for larger.",
        show_default="extend",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of the noise and of random labels.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "int8"],
    typer.Option(
        help="Number format that the networks compute in. auto takes bfloat16 on a GPU or CPU that is fast "
        "in it, such as a CPU with AMX, else float32. int8 needs --runtime onnx or openvino.",
    ),
]
RuntimeName = Annotated[
    Literal["torch", "openvino", "onnx"] | None,
    typer.Option(
        "--runtime",
        help="What computes the networks. openvino and onnx export the pipeline into a cache at the first use.",
        show_default="torch, or what the pipeline was exported for",
    ),
]
OutputDir = Annotated[
    Path | None, typer.Option(rich_help_panel=MANY, help="New folder for a PNG of each image and a list of labels.")
]
Npz = Annotated[
    Path | None,
    typer.Option(rich_help_panel=MANY, help="File in ADM's format (arr_0: N x H x W x 3), instead of a folder."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MANY,
        callback=check_labels,
        help="Labels of the images: random, balanced, or a text file with one label on each line.",
        show_default="random",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MANY, min=1, help="Number of images that each process draws at once.", show_default="32"
    ),
]
ListClasses = Annotated[
    bool, typer.Option("--list-classes", help="Print the ids and names of the model's classes, and stop.")
]


@app.command(
    cls=Command,
    epilog='Example: dit-hf generate examples/assets/dit-emoji --class-labels "panda face, 7" --output pandas.png; '
    "many images: torchrun --nproc-per-node 2 --no-python dit-hf generate MODEL --num-images 50000 --npz samples.npz",
)
def generate(
    model: Model,
    class_labels: ClassLabels = None,
    output: Output = None,
    num_images_per_label: NumImagesPerLabel = None,
    num_images: NumImages = None,
    guidance_scale: GuidanceScale = None,
    guidance_interval: GuidanceInterval = None,
    scheduler: Scheduler = None,
    num_inference_steps: NumInferenceSteps = None,
    resolution: Resolution = None,
    position_policy: PositionPolicy = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    runtime: RuntimeName = None,
    output_dir: OutputDir = None,
    npz: Npz = None,
    labels: Labels = None,
    batch_size: BatchSize = None,
    list_classes: ListClasses = False,
) -> None:
    """Draw images of given classes into one file, or many images into a folder or an .npz file.

    Many images can be drawn by several processes. Image k depends only on the seed and on k, and an interrupted command
    continues when it is run again.
    """
    if list_classes:
        return _list_classes(model)

    destination = _check_destination(output_dir, npz)
    if destination:
        one_file = {"--class-labels": class_labels, "--output": output, "--num-images-per-label": num_images_per_label}
        refuse(one_file, "is for one file: with --output-dir or --npz use --labels and --num-images")
        check_num_images(num_images, labels)
    else:
        refuse({"--labels": labels, "--batch-size": batch_size}, "is for many images: give --output-dir or --npz too")
        refuse({"--num-images": num_images if class_labels else None}, "counts all images: use --num-images-per-label")
        output = _check_format(output or Path("out.png"))

    import torch
    from accelerate import PartialState

    from ..class_names import names_to_ids
    from ..generation.from_pipeline import generate_with_pipeline
    from ..pipeline_dit import DiTPipeline
    from ..runtime.once import load_for

    pipeline = load_for(DiTPipeline, model, runtime, dtype)
    if scheduler is not None:
        from ..conversion import with_scheduler

        pipeline = with_scheduler(pipeline, scheduler)
    if guidance_scale is None and not pipeline.transformer.config.has_null_class:
        guidance_scale = 1.0
    arguments: dict[str, Any] = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
    arguments["guidance_interval"] = guidance_interval
    if resolution is not None:
        _check_resolution(pipeline, resolution)
        arguments |= {"height": resolution, "width": resolution, "position_policy": position_policy or "extend"}
    else:
        refuse({"--position-policy": position_policy}, "needs --resolution")
    if destination:
        arguments |= {"labels": labels, "seed": seed, "batch_size": batch_size or 32}
        written = generate_with_pipeline(pipeline, destination, num_images, **arguments)
        PartialState().print(f"wrote {written}")  # once for all processes
        return
    if class_labels is None:
        refuse({"--num-images-per-label": num_images_per_label}, "needs --class-labels: use --num-images")
        arguments["num_images"] = num_images
    else:
        arguments["class_labels"] = parse_labels(class_labels, names_to_ids(pipeline.config.id2label or {}))
        arguments["num_images_per_label"] = num_images_per_label or 1
    pipeline = pipeline.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    images = pipeline(generator=torch.Generator().manual_seed(seed), **arguments).images
    assert output is not None
    _save_grid(images, num_images_per_label or 1, output)
    typer.echo(f"wrote {len(images)} image{'s' if len(images) > 1 else ''} to {output}")
