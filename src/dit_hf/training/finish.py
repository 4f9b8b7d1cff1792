"""The end of a training: the pipeline is saved, loaded back as a user would, sampled, described and pushed."""

from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from PIL import Image

from ..cards.training import TrainingCard
from ..files import announce, folder_written_whole
from ..finetuning import merged, save_lora
from ..hub.background import save_training_pipeline
from ..pipeline_dit import DiTPipeline
from .processes.signals import Preempted
from .reporting.loss_curve import plot_losses
from .reporting.previews import PreviewStopped, save_grid
from .settings import TrainSettings
from .trainer import Trainer

logger = get_logger("dit_hf.training")

GAP = 8  # pixels between the pictures before and after


def stack_pictures(upper: Path, lower: Path, target: Path) -> None:
    """Write two pictures below each other as one."""
    pictures = [Image.open(path).convert("RGB") for path in (upper, lower)]
    height = sum(picture.height for picture in pictures) + GAP
    stacked = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    stacked.paste(pictures[0], (0, 0))
    stacked.paste(pictures[1], (0, pictures[0].height + GAP))
    stacked.save(target)


def save_adapter(settings: TrainSettings, pipeline: DiTPipeline, output_dir: Path, card: Any = None) -> Path:
    """Save the adapter of a training with a card of its own to `output_dir/adapter`; return that folder.

    Args:
        settings: Settings of the training.
        pipeline: Pipeline with the averaged weights.
        output_dir: Folder of the training.
        card: Card of the pipeline, which an adapter does not have.
    """
    names, base = pipeline.config.id2label, settings.init_from
    with folder_written_whole(output_dir / "adapter") as partial:
        announce("write", partial)
        save_lora(pipeline.transformer, partial, names, base, license=settings.hub_license)
    return output_dir / "adapter"


def finish(trainer: Trainer, pipeline: DiTPipeline, card: TrainingCard) -> None:
    """Save the pipeline with the averaged weights, sample it, draw the loss curve, and push.

    Args:
        trainer: Training that has ended.
        pipeline: Pipeline with the averaged weights.
        card: Model card of the training.

    Raises:
        HubError: If the push has not arrived; the same command again pushes once more.
        Preempted: If the training is asked to stop meanwhile; the same command again finishes.
    """
    settings, path, push = trainer.settings, trainer.folder.path, trainer.push
    trainer.wait_for_push()  # a push that runs reads the folder
    pushed = path / "pipeline"
    if settings.lora_rank:
        pushed = save_adapter(settings, pipeline, path)
    pipeline = merged(pipeline)
    save_training_pipeline(pipeline, path, card)
    loaded = DiTPipeline.from_pretrained(path / "pipeline").to(pipeline.device)
    try:
        images = trainer.folder.previews.draw(loaded, lambda: bool(trainer.stop))
    except PreviewStopped as error:
        raise Preempted("asked to stop at the end of the training") from error
    save_grid(images, path / "samples.png", trainer.folder.previews.names(loaded))
    if (before := trainer.folder.previews.folder / "step-00000000.png").is_file():
        stack_pictures(before, path / "samples.png", path / "before_after.png")
    classes = trainer.folder.previews.classes(loaded.transformer.config)
    names = loaded.config.id2label or {}
    card.add_samples(images, [names.get(class_id, f"class {class_id}") for class_id in classes])
    card.early_end = trainer.early_end
    plot_losses(path / "metrics.jsonl", path / "loss.png")
    card.write(pipeline, path / "pipeline")
    if push:
        push.start(pushed, "End of training")
        trainer.wait_for_push()
        push.check_arrived()
    reason = {"reason": trainer.early_end} if trainer.early_end else {}
    trainer.folder.status.write("finished", step=trainer.folder.checkpoints.newest_step, **reason)
    logger.info(f"wrote {path / 'pipeline'}")
