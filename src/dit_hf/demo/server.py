"""Serving the page: the bounds that are not of one call, and nothing that helps an attacker in an answer."""

import contextlib
from typing import Any

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .page import FONTS, STYLE

API = "/gradio_api/"
UPLOADS = ("upload", "component_server")  # addresses that take pictures, the second those that are painted in a browser
# what the page and `gradio_client` use; Gradio answers at many more addresses, such as one that skips the queue
ADDRESSES = {
    *UPLOADS, "upload_progress", "file", "call", "queue", "cancel", "reset", "heartbeat", "info", "openapi.json",
    "app_id", "startup-events", "theme.css",
}  # fmt: skip
REFUSED = ("monitoring", "login")  # addresses of the page that Gradio would answer for its own purposes
FORM_BYTES = 2**16  # of an upload, beside its files


class TooLarge(Exception):
    """The body of a request is larger than it may be."""


class Gate:
    """ASGI middleware that refuses addresses that nobody needs, and requests whose body is too large.

    Args:
        app: Application behind it.
        limits: Bounds of the server.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        name = path.removeprefix(API).partition("/")[0].partition("=")[0] if path.startswith(API) else ""
        if (path.startswith(API) and name not in ADDRESSES) or path.strip("/").partition("/")[0] in REFUSED:
            return await PlainTextResponse("there is nothing here", 404)(scope, receive, send)
        megabytes = self.limits.max_upload_mb if name in UPLOADS else self.limits.max_request_mb
        most, received, has_begun = megabytes * 2**20 + (FORM_BYTES if name in UPLOADS else 0), 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal has_begun
            if received <= most:  # FastAPI would answer that it cannot read the body
                has_begun = True
                await send(message)

        with contextlib.suppress(TooLarge):
            await self.app(scope, counted, noted)
        if received > most and not has_begun:
            await PlainTextResponse("the request is too large", 413)(scope, receive, send)


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
    page.queue(max_size=limits.max_waiting, api_open=False)  # otherwise one address skips the queue
    return page.launch(
        show_error=False,  # an unexpected error is logged here, and its text stays here
        max_file_size=f"{limits.max_upload_mb}mb",
        app_kwargs={"middleware": [Middleware(Gate, limits=limits)]},
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        theme=gr.themes.Default(**FONTS),
        css=STYLE,
        footer_links=["api"],
        **options,
    )
