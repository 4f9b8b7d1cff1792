"""The code of a call, to copy: run as it is printed, it draws the same images."""

import json

from .limits import Call

LOAD = """\
import torch
from dit_hf import {pipeline}{imports}

pipeline = {pipeline}.from_pretrained({source})
{scheduler}"""
SCHEDULER = "pipeline = with_scheduler(pipeline, {name})\n"
DRAW = """\
images = pipeline(
    {arguments},
    guidance_scale={guidance},
    num_inference_steps={steps},
    generator=torch.Generator().manual_seed({seed}),
).images
"""
BETWEEN = """\
images = interpolate(
    pipeline, {labels}, num_frames={num_images}, seeds=({seed}, {next_seed}),
    guidance_scale={guidance},
    num_inference_steps={steps},
    generator=torch.Generator().manual_seed({seed}),
)
"""
SAVE = """\
for k, image in enumerate(images):
    image.save(f"{k}.png")
"""
PICTURES = {
    "change": ('from PIL import Image\n\nimage = Image.open("image.png")  # the picture to begin with\n', "image, "),
    "inpaint": (
        'from PIL import Image\n\nimage = Image.open("image.png")\nmask = Image.open("mask.png")  # white where new\n',
        "image, mask, ",
    ),
}
PIPELINES = {"change": "DiTImg2ImgPipeline", "inpaint": "DiTInpaintPipeline"}


def write_code(call: Call, source: str, own_scheduler: str, names: list[str]) -> str:
    """Return a program that makes a call.

    Args:
        call: Checked call.
        source: Id or folder of the pipeline.
        own_scheduler: Class name of the pipeline's own scheduler.
        names: Each class of the call as Python writes it: its id, or its name in quotes.
    """
    other = call.scheduler != own_scheduler
    imports = "\nfrom dit_hf.conversion import with_scheduler" if other else ""
    imports += "\nfrom dit_hf.generation import interpolate" if call.task == "between" else ""
    scheduler = SCHEDULER.format(name=json.dumps(call.scheduler)) if other else ""
    pipeline = PIPELINES.get(call.task, "DiTPipeline")
    code = LOAD.format(pipeline=pipeline, imports=imports, source=json.dumps(source), scheduler=scheduler)
    labels = f"[{', '.join(names)}]" if names else ""
    numbers = {"guidance": call.guidance_scale, "steps": call.num_inference_steps, "seed": call.seed}
    if call.task == "between":
        call_code = BETWEEN.format(labels=labels, num_images=call.num_images, next_seed=call.seed + 1, **numbers)
        return code + call_code + SAVE
    before, pictures = PICTURES.get(call.task, ("", ""))
    one = f"num_images={call.num_images}" if not labels else f"{labels}, num_images_per_label={call.num_images}"
    if call.strength is not None:
        one += f", strength={call.strength}"
    return code + before + DRAW.format(arguments=pictures + one, **numbers) + SAVE
