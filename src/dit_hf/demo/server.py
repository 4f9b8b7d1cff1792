"""Serving the page: the bounds that are not of one call, and nothing that helps an attacker in an answer."""

from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .limits import Limits
from .page import FONTS, STYLE

UPLOAD = "/upload"  # the only address that takes files, whose size Gradio checks


class RequestLimit:
    """ASGI middleware that refuses a request, other than an upload, whose body is too large.

    Args:
        app: Application behind it.
        max_bytes: Size of the body in bytes, at most.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(UPLOAD):
            return await self.app(scope, receive, send)
        body = b""
        while scope["method"] in ("POST", "PUT", "PATCH"):
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_bytes:
                await send(
                    {"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]}
                )
                return await send({"type": "http.response.body", "body": b"the request is too large"})
            if not message.get("more_body"):
                break
        is_read = not body and scope["method"] not in ("POST", "PUT", "PATCH")

        async def replay() -> Any:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        return await self.app(scope, replay, send)


def serve(page: gr.Blocks, limits: Limits | None = None, **options: Any) -> Any:
    """Serve a page until it is interrupted; from then on, Pillow refuses larger images than `limits` in this process.

    Args:
        page: Page of `build_page`.
        limits: Bounds of the server; None takes those of `Limits`.
        **options: Arguments of gradio's `launch`, such as `server_name`, `server_port` and `prevent_thread_lock`.

    Returns:
        What gradio's `launch` returns: the application, the local address, and the public one.
    """
    limits = limits or Limits()
    Image.MAX_IMAGE_PIXELS = limits.max_side**2  # Pillow refuses to decode twice as many
    page.queue(max_size=limits.max_waiting)
    return page.launch(
        show_error=False,  # an unexpected error is logged here, and its text stays here
        max_file_size=f"{limits.max_upload_mb}mb",
        app_kwargs={"middleware": [Middleware(RequestLimit, max_bytes=limits.max_request_mb * 2**20)]},
        ssr_mode=False,
        theme=gr.themes.Default(**FONTS),
        css=STYLE,
        footer_links=["api"],
        **options,
    )
