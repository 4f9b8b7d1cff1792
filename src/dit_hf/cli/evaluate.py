"""`dit-hf evaluate` measures samples or a model; `dit-hf table` prints the results below the paper's."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..flags import in_flags
from .entry import Command, DtypeName, app, refuse
from .local_files import check_extractor, check_labels, check_num_images, check_saved_pipeline, check_source

PrecisionRecallMode = Literal["exact", "adm_float16"]
# titles of groups of options in the help
MODEL = "With --model"
DATA_SETS = "With data sets"
METRIC_NAMES = ("fid", "sfid", "inception_score", "precision_recall", "kid", "density_coverage", "class_fid")


def split_metrics(names: str | None) -> list[str] | None:
    """Turn "fid, kid" into ["fid", "kid"].

    Raises:
        ValueError: If a name is unknown.
    """
    metrics = None if names is None else [name.strip() for name in names.split(",")]
    if unknown := [name for name in metrics or () if name not in METRIC_NAMES]:
        raise ValueError(f"metric {unknown[0]!r} is unknown: choose from {', '.join(METRIC_NAMES)}")
    return metrics


def _check_metrics(names: str | None) -> str | None:
    split_metrics(names)
    return names


def _check_card(card: Path | None) -> Path | None:
    if card is not None and not card.is_file():
        raise ValueError(f"{card} is no file: name the model's README.md")
    return card


def _check_statistics(path: Path | None) -> Path | None:
    if path is not None and path.suffix != ".npz":
        raise ValueError(f"{path}: a file of statistics must end in .npz")
    return path


Reference = Annotated[
    str | None,
    typer.Option(
        callback=check_source, help="Real images: ADM's .npz, statistics of --save-reference, a folder or a data set."
    ),
]
Samples = Annotated[
    str | None,
    typer.Option(callback=check_source, help="Samples to measure: ADM's .npz, a folder of images, or a data set."),
]
Model = Annotated[
    str | None,
    typer.Option(
        callback=check_saved_pipeline, help="Pipeline to draw samples from instead of --samples: its folder or id."
    ),
]
NumImages = Annotated[int | None, typer.Option(min=1, help="Number of samples.", show_default="all")]
Extractor = Annotated[
    str,
    typer.Option(
        callback=check_extractor,
        help="Network that computes features: inception, dinov2, or your own as my_network.py:Name.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(callback=check_source, help="File or id of the extractor's weights.", show_default="downloaded"),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        callback=_check_metrics, help=f"Metrics, separated by commas: {', '.join(METRIC_NAMES)}.", show_default="all"
    ),
]
PrecisionRecall = Annotated[
    PrecisionRecallMode | None,
    typer.Option(
        help="Arithmetic of precision and recall: adm_float16, as in published numbers, or exact.",
        metavar="exact|adm_float16",
        show_default="adm_float16 with inception, else exact",
    ),
]
KidSubsetSize = Annotated[int, typer.Option(min=2, help="Number of images in each subset of KID.")]
InceptionScoreSeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Seed of a permutation of the samples before they are split for the Inception score.",
        show_default="the order of the samples, as in published numbers",
    ),
]
NumGroups = Annotated[int, typer.Option(min=1, help="Number of groups for jackknife standard errors; 1 computes none.")]
Output = Annotated[Path | None, typer.Option(help="JSON file for the result and all settings.")]
Card = Annotated[Path | None, typer.Option(callback=_check_card, help="Model card that the result is written into.")]
SaveReference = Annotated[
    Path | None,
    typer.Option(
        callback=_check_statistics, help="File (.npz) for the statistics of --samples, instead of a comparison."
    ),
]
WorkDir = Annotated[
    Path | None, typer.Option(help="Folder that keeps features, so that an interrupted command can continue.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Number of images that each process handles at once.")]
Resolution = Annotated[
    int | None,
    typer.Option(min=1, help="Side in pixels that images are resized and cropped to.", show_default="as they are"),
]
Split = Annotated[str, typer.Option(rich_help_panel=DATA_SETS, help="Split of a data set.")]
ImageColumn = Annotated[str, typer.Option(rich_help_panel=DATA_SETS, help="Column of the images.")]
LabelColumn = Annotated[
    str, typer.Option(rich_help_panel=DATA_SETS, help="Column of the class of each image; none reads no classes.")
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=MODEL, min=0, help="Scale of classifier-free guidance; 1 is no guidance.", show_default="1"
    ),
]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MODEL, min=1, help="Number of sampling steps.", show_default="depends on the scheduler"
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        callback=check_labels,
        help="Labels of the samples: random, balanced, or a text file with one label on each line.",
        show_default="random",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(rich_help_panel=MODEL, min=0, help="Seed of the noise and of random labels.", show_default="0"),
]
NumSeeds = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=MODEL,
        min=1,
        help="Number of seeds: all samples are drawn again for each, and the results are averaged.",
        show_default="1",
    ),
]
Dtype = Annotated[
    DtypeName | None,
    typer.Option(rich_help_panel=MODEL, help="Precision of the model's computations.", show_default="float32"),
]


@app.command(
    cls=Command,
    epilog="Example: dit-hf evaluate --model my/dit --num-images 50000 --reference VIRTUAL_imagenet256_labeled.npz; "
    "existing samples: --samples samples.npz instead of --model; several processes: torchrun --nproc-per-node 8 "
    "--no-python dit-hf evaluate ...",
)
def evaluate(
    reference: Reference = None,
    samples: Samples = None,
    model: Model = None,
    num_images: NumImages = None,
    extractor: Extractor = "inception",
    weights: Weights = None,
    metrics: Metrics = None,
    precision_recall: PrecisionRecall = None,
    kid_subset_size: KidSubsetSize = 1000,
    inception_score_seed: InceptionScoreSeed = None,
    num_groups: NumGroups = 1,
    output: Output = None,
    card: Card = None,
    save_reference: SaveReference = None,
    work_dir: WorkDir = None,
    batch_size: BatchSize = 64,
    resolution: Resolution = None,
    split: Split = "train",
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    guidance_scale: GuidanceScale = None,
    num_inference_steps: NumInferenceSteps = None,
    labels: Labels = None,
    seed: Seed = None,
    num_seeds: NumSeeds = None,
    dtype: Dtype = None,
) -> None:
    """Measure samples or a model: FID, sFID, Inception score, precision, recall and others, in one pass."""
    given = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps, "labels": labels}
    given |= {"seed": seed, "num_seeds": num_seeds, "dtype": dtype}
    sampling: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if (samples is None) == (model is None):
        raise ValueError("--samples and --model: give one of them")
    if (reference is None) == (save_reference is None):
        raise ValueError("--reference and --save-reference: give one of them")
    if samples is not None:
        refuse({f"--{name.replace('_', '-')}": value for name, value in sampling.items()}, "is for --model")
    if model is not None:
        check_num_images(num_images, labels)
    if save_reference is not None:
        comparison = {"--model": model, "--output": output, "--card": card, "--metrics": metrics}
        refuse(comparison, "is for comparing: leave out --save-reference")

    from accelerate import PartialState

    from ..evaluation import MetricSettings, run
    from ..evaluation.sources import SourceOptions

    columns = (image_column, None if label_column == "none" else label_column)
    options = SourceOptions(batch_size, resolution, split, *columns)
    network = run.ExtractorChoice(extractor, weights)
    limits: dict[str, Any] = {"num_images": num_images, "work_dir": work_dir}
    if save_reference is not None:
        run.save_statistics(str(samples), save_reference, network, options, **limits)
        PartialState().print(f"wrote {save_reference}")  # once for all processes
        return
    settings = MetricSettings(
        precision_recall_mode=precision_recall,
        kid_subset_size=kid_subset_size,
        inception_score_seed=inception_score_seed,
    )
    compared = (str(reference), network, settings, options)
    limits |= {"metrics": split_metrics(metrics), "num_groups": num_groups}
    if model is None:
        result = run.evaluate_source(str(samples), *compared, **limits)
    else:
        draws = run.SamplingOptions(**sampling)
        result = run.evaluate_model(model, *compared, draws, **limits)
    if PartialState().is_main_process:
        typer.echo(in_flags(result.table(), ["kid_subset_size"]))
        run.write_result(result, output, card)


@app.command(cls=Command, epilog="Example: dit-hf table evaluation.json --resolution 256")
def table(
    evaluations: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of dit-hf evaluate --output; each becomes a row.", show_default=False),
    ] = None,
    resolution: Annotated[
        int, typer.Option(help="Resolution of the paper's table: 256 for table 2, 512 for table 3.")
    ] = 256,
) -> None:
    """Print the paper's results on ImageNet, quoted, with your own evaluations below them."""
    from ..analysis import tables

    typer.echo(tables.format_results(resolution, [tables.read_result(file) for file in evaluations or []]))
