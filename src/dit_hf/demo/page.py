"""The page: four tabs (from a class, from a picture, a part of a picture, between two classes) over shared settings."""

import json
import logging
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import torch
from PIL import Image

from ..conversion import with_scheduler
from ..sampling.class_names import names_to_ids
from ..sampling.defaults import usual_guidance_scale, usual_num_steps
from ..sampling.schedulers import SCHEDULERS
from .drawing import Step, draw
from .limits import MAX_SEED, Call, Limits
from .pictures import bounded, checked
from .snippet import write_code

logger = logging.getLogger(__name__)

MAX_KEPT = 24  # pictures of a visitor that the gallery keeps
KEPT_SECONDS = 3600  # for which pictures, uploads and a visitor's gallery stay on the server
DIGITS = 3  # of guidance and strength: the page's sliders send 0.30000000000000004

STYLE = """
.gradio-container { width: 100%; max-width: min(1100px, 100vw) !important; margin: auto; overflow-x: hidden; }
.picture img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
progress { width: 100%; height: 0.6rem; accent-color: #4f46e5; }
"""
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # nothing is fetched

Outputs = tuple[Any, Any, Any, Any, Any]  # state of the call, picture on the way, gallery, code, pictures kept


def build_page(pipeline: Any, source: str, limits: Limits | None = None) -> gr.Blocks:
    """Build the page of a pipeline.

    Args:
        pipeline: `DiTPipeline`, on the device that draws.
        source: Id or folder of the pipeline, which the title and the code show.
        limits: Bounds; None takes those of `Limits`.

    Returns:
        The page, whose events may be called as an API too: `/draw`, `/change`, `/inpaint` and `/between`.
    """
    return _Page(pipeline, source, limits or Limits()).build()


class _Page:
    def __init__(self, pipeline: Any, source: str, limits: Limits) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.source, self.limits = pipeline, source, limits
        names = pipeline.config.id2label or {}
        num_classes = pipeline.transformer.config.num_classes
        self.names = {class_id: names.get(class_id, f"class {class_id}") for class_id in range(num_classes)}
        self.own_scheduler = type(pipeline.scheduler).__name__

    def build(self) -> gr.Blocks:
        with gr.Blocks(
            title=f"dit-hf: {self.source}", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.Markdown(f"# {self.source}\nPictures by a Diffusion Transformer, drawn with dit-hf.")
            kept = gr.State([], time_to_live=KEPT_SECONDS)
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    starts = self._tabs()
                    shared = self._settings()
                with gr.Column(scale=1, min_width=300):
                    status = gr.HTML("Choose, then draw.", elem_id="status")
                    preview = gr.Image(
                        label="While it is drawn", height=240, interactive=False, format="png", elem_classes="picture"
                    )
                    gallery = gr.Gallery(
                        label="Pictures, newest first",
                        elem_id="gallery",
                        format="png",
                        columns=3,
                        elem_classes="picture",
                    )
                    code = gr.Code(label="Code of this picture", elem_id="code", language="python", interactive=False)
            for name, (button, function, inputs) in starts.items():
                button.click(
                    _on_gpu(function, self.limits),
                    [*inputs, *shared, kept],
                    [status, preview, gallery, code, kept],
                    api_name=name,
                    concurrency_id="model",
                    concurrency_limit=1,
                    show_progress="minimal",
                    show_progress_on=status,
                )
        return page

    def _tabs(self) -> dict[str, tuple[gr.Button, Callable[..., Any], list[Any]]]:
        starts: dict[str, tuple[gr.Button, Callable[..., Any], list[Any]]] = {}
        strength = {"minimum": 0.05, "maximum": 1, "step": 0.05, "label": "Strength: how much changes"}
        with gr.Tabs():
            with gr.Tab("Draw"):
                inputs = [self._class_choice("Class", 0), self._number_of_images()]
                starts["draw"] = (gr.Button("Draw", variant="primary", elem_id="draw"), self.draw, inputs)
            with gr.Tab("Change"):
                image = checked(
                    gr.Image(
                        label="Picture to begin with", type="pil", image_mode=None, sources=["upload", "clipboard"]
                    )
                )
                inputs = [image, self._class_choice("Change it into", 0), gr.Slider(value=0.6, **strength)]
                starts["change"] = (gr.Button("Change", variant="primary", elem_id="change"), self.change, inputs)
            with gr.Tab("Inpaint"):
                brush = gr.Brush(colors=["#ff3366"], color_mode="fixed", default_size=20)
                editor = gr.ImageEditor(
                    label="Picture; paint over what is drawn anew", type="pil", brush=brush, layers=False,
                    sources=["upload", "clipboard"], transforms=(),
                )  # fmt: skip
                editor = checked(bounded(editor, self.limits))
                inputs = [editor, self._class_choice("Draw there", 0), gr.Slider(value=1.0, **strength)]
                starts["inpaint"] = (
                    gr.Button("Draw the part", variant="primary", elem_id="inpaint"),
                    self.inpaint,
                    inputs,
                )
            if len(self.names) > 1:
                with gr.Tab("Between"):
                    inputs = [self._class_choice("From", 0), self._class_choice("To", 1), self._number_of_images(2, 5)]
                    button = gr.Button("Walk", variant="primary", elem_id="between")
                    starts["between"] = (button, self.between, inputs)
        return starts

    def _class_choice(self, label: str, value: int) -> gr.Dropdown:
        choices = [(name, class_id) for class_id, name in self.names.items()]
        return gr.Dropdown(
            choices, value=value if choices else None, label=label, visible=bool(choices), filterable=True
        )

    def _number_of_images(self, least: int = 1, value: int = 1) -> gr.Slider:
        most = self.limits.max_images
        return gr.Slider(least, most, value=min(value, most), step=1, label="Number of pictures")

    def _settings(self) -> list[Any]:
        with gr.Accordion("Settings", open=True):
            guidance = gr.Slider(1, self.limits.max_guidance, value=self._own_guidance(), step=0.1, label="Guidance")
            steps = gr.Slider(
                1,
                self.limits.max_steps,
                value=min(usual_num_steps(self.pipeline), self.limits.max_steps),
                step=1,
                label="Steps",
                elem_id="steps",
            )
            scheduler = gr.Dropdown(self._schedulers(), value=self.own_scheduler, label="Scheduler")
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
                dice = gr.Button("Another seed", min_width=120)
        dice.click(lambda: secrets.randbelow(2**16), None, seed, api_visibility="private", queue=False)
        return [guidance, steps, scheduler, seed]

    def _own_guidance(self) -> float:
        if not self.pipeline.transformer.config.has_null_class:
            return 1.0
        return min(max(usual_guidance_scale(self.pipeline), 1.0), self.limits.max_guidance)

    def _schedulers(self) -> list[str]:
        """Return the schedulers that can sample this model, its own first."""
        fitting = [self.own_scheduler]
        for name in SCHEDULERS:
            try:
                with_scheduler(self.pipeline, name)
            except ValueError:
                continue
            fitting += [] if name in fitting else [name]
        return fitting

    # ---- the events: what a client may call --------------------------------------------------------------------------

    def draw(
        self, label: Any, num_images: Any, guidance: Any, steps: Any, scheduler: Any, seed: Any, kept: Any
    ) -> Iterator[Outputs]:
        yield from self._run("draw", [label], num_images, (guidance, steps, seed, scheduler), kept)

    def change(
        self, image: Any, label: Any, strength: Any, guidance: Any, steps: Any, scheduler: Any, seed: Any, kept: Any
    ) -> Iterator[Outputs]:
        yield from self._run("change", [label], 1, (guidance, steps, seed, scheduler, strength), kept, image)

    def inpaint(
        self, editor: Any, label: Any, strength: Any, guidance: Any, steps: Any, scheduler: Any, seed: Any, kept: Any
    ) -> Iterator[Outputs]:
        pictures = read_editor(editor)
        yield from self._run("inpaint", [label], 1, (guidance, steps, seed, scheduler, strength), kept, *pictures)

    def between(
        self, start: Any, end: Any, num_images: Any, guidance: Any, steps: Any, scheduler: Any, seed: Any, kept: Any
    ) -> Iterator[Outputs]:
        yield from self._run("between", [start, end], num_images, (guidance, steps, seed, scheduler), kept)

    def _run(
        self, task: Any, labels: list[Any], num_images: Any, settings: tuple, kept: list[Any], *pictures: Any
    ) -> Iterator[Outputs]:
        labels = labels if self.names else []
        call = Call(task, tuple(labels), num_images, *map(_rounded, settings))
        same = gr.skip()
        try:
            for message in draw(self.pipeline, call, self.limits, *pictures):
                if isinstance(message, Step):
                    shown = same if message.preview is None else message.preview
                    yield _bar(message.number, message.total), shown, same, same, same
                else:
                    yield self._finished(call, message, kept)
        except (ValueError, FloatingPointError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except torch.OutOfMemoryError as error:
            logger.exception("out of memory")
            raise gr.Error("the memory is full: choose fewer pictures", print_exception=False) from error

    def _finished(self, call: Call, images: list[Image.Image], kept: list[Any]) -> Outputs:
        names = [self.names[label] for label in call.labels]
        caption = f"{' to '.join(names) or 'picture'}, seed {call.seed}"
        kept = [*((image, caption) for image in images), *kept][:MAX_KEPT]
        ids = names_to_ids(self.pipeline.config.id2label or {})
        is_name = {label: list(ids.get(self.names[label], ())) == [label] for label in call.labels}
        literals = [
            json.dumps(self.names[label], ensure_ascii=False) if is_name[label] else str(label) for label in call.labels
        ]
        code = write_code(call, self.source, self.own_scheduler, literals)
        return f"Drawn: {caption}.", images[0], kept, code, kept


def read_editor(editor: Any) -> tuple[Image.Image | None, Image.Image | None]:
    """Return the picture and the mask that a client painted: white where a layer has paint.

    Args:
        editor: Value of `gr.ImageEditor`: the picture "background" and the "layers" painted on it.
    """
    if not editor or editor.get("background") is None:
        return None, None
    image = editor["background"]
    mask = Image.new("L", image.size)
    for layer in editor.get("layers") or []:
        paint = layer.convert("RGBA").getchannel("A").resize(image.size).point(lambda alpha: 255 if alpha > 127 else 0)
        mask.paste(255, mask=paint)
    return image, mask


def _rounded(number: Any) -> Any:
    return round(number, DIGITS) if isinstance(number, float) else number


def _bar(number: int, total: int) -> str:
    return f'Step {number} of {total}<progress value="{number}" max="{total}"></progress>'


def _on_gpu(function: Callable[..., Any], limits: Limits) -> Callable[..., Any]:
    """Let a function borrow a GPU of a Space with ZeroGPU; elsewhere return it as it is."""
    spaces = sys.modules.get("spaces")  # the Space's app.py imports it before torch, where it is installed
    return spaces.GPU(duration=limits.max_seconds)(function) if spaces else function
