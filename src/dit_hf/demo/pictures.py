"""Pictures that a client sends: bounds of what Gradio keeps in memory, and a message for a file that is no picture."""

import io
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import gradio as gr
from gradio.components.base import server
from gradio.data_classes import DataWithFiles
from PIL import Image
from starlette.exceptions import HTTPException

from .limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would hand others, such as EPS, to other programs
PARTS = ("background", "composite", "layer")  # of a painted picture, as the browser names them
MAX_LAYERS = 8  # that a client paints; the page's editor has one
MAX_ID = 64  # letters of the name that the browser gives to a painted picture
KEPT_UPLOADS = 16  # the largest uploads that painted pictures may fill memory with, before the oldest go

AnyComponent = TypeVar("AnyComponent", gr.Image, gr.ImageEditor)


def checked(component: AnyComponent) -> AnyComponent:
    """Return a component that reads pictures of the usual formats only, and answers any other file with a message.

    Args:
        component: Component whose pictures come from a client.
    """
    read = component.preprocess

    def preprocess(payload: Any) -> Any:
        if (num_layers := len(getattr(payload, "layers", None) or [])) > MAX_LAYERS:
            raise gr.Error(f"{num_layers} layers: paint on at most {MAX_LAYERS}", print_exception=False)
        try:
            for source in _sources(component, payload):
                Image.open(source, formats=FORMATS).close()
            return _without_paths(read(payload))
        except gr.Error:
            raise
        except Image.DecompressionBombError as error:
            raise gr.Error("the picture has too many pixels: choose a smaller one", print_exception=False) from error
        except Exception as error:  # what the many readers of Pillow raise is not one class
            message = f"this file cannot be read as a picture: choose one of {', '.join(FORMATS)}"
            raise gr.Error(message, print_exception=False) from error

    component.preprocess = preprocess  # a subclass would make Gradio write a stub beside this file
    return component


def bounded(editor: gr.ImageEditor, limits: Limits) -> gr.ImageEditor:
    """Return an editor that keeps a bounded amount of what browsers paint.

    At each stroke a browser sends the picture and its layers anew, under a new name. Gradio keeps all that is not drawn
    from, and makes as many layers as a client names.

    Args:
        editor: Editor of the page.
        limits: Bounds of the server.
    """
    accept, lock = editor.accept_blobs, threading.Lock()

    @server
    def accept_blobs(data: DataWithFiles) -> None:
        """Keep a part of a painted picture until the picture is drawn from."""
        if not is_part(data):
            raise HTTPException(400, "this is no part of a painted picture")
        with lock:
            accept(data)
            drop_oldest(editor.blob_storage, KEPT_UPLOADS * limits.max_upload_mb * 2**20)

    editor.accept_blobs = accept_blobs
    return editor


def is_part(data: Any) -> bool:
    """Whether a request holds one part of a painted picture, with a name and an index as the page's browser sends them.

    Args:
        data: Request, as Gradio reads it: a dictionary, or fields with files.
    """
    if not isinstance(data, DataWithFiles) or not isinstance(data.data, dict) or len(data.files) != 1:
        return False
    name, kind, index = data.data.get("id"), data.data.get("type"), data.data.get("index")
    is_index = index in ("null", "", None) or index in map(str, range(MAX_LAYERS))
    return isinstance(name, str) and 0 < len(name) <= MAX_ID and kind in PARTS and is_index and "index" in data.data


def drop_oldest(kept: dict[str, Any], max_bytes: int) -> None:
    """Drop the oldest painted pictures until the rest takes at most `max_bytes`.

    Args:
        kept: Parts of painted pictures by name, the oldest first.
        max_bytes: Bytes of all parts.
    """
    sizes = {name: sum(len(part or b"") for part in _parts(blobs)) for name, blobs in kept.items()}
    too_much = sum(sizes.values()) - max_bytes
    for name, size in sizes.items():
        if too_much <= 0:
            break
        kept.pop(name, None)
        too_much -= size


def _without_paths(read: Any) -> Any:
    """Let later messages about pictures call them by no path of the server."""
    for picture in [read, *(read.values() if isinstance(read, dict) else ())]:
        if getattr(picture, "filename", None):
            picture.filename = "the picture"
    return read


def _sources(component: Any, payload: Any) -> Iterator[Any]:
    """Yield the files, or their content, that a component is about to read."""
    if getattr(payload, "id", None) is not None:
        kept = component.blob_storage.get(payload.id)
        yield from (io.BytesIO(part) for part in (_parts(kept) if kept else []) if part)
    else:
        layers = getattr(payload, "layers", None) or []
        files = [payload, getattr(payload, "background", None), getattr(payload, "composite", None), *layers]
        yield from (file.path for file in files if getattr(file, "path", None))


def _parts(blobs: Any) -> list[bytes | None]:
    return [blobs.background, blobs.composite, *blobs.layers]
