"""The server of the demo against what a client may send: numbers, sizes, floods, paths."""

import base64
import io
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gradio.components.image_editor import EditorDataBlobs
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from dit_hf import DiTPipeline
from dit_hf.demo.limits import Limits
from dit_hf.demo.page import build_page
from dit_hf.demo.pictures import drop_oldest
from dit_hf.demo.server import serve

from .conftest import LIMITS, make_pipeline

pytestmark = pytest.mark.slow

DRAW = [1, 1, 2.0, 3, "DDIMScheduler", 7]  # class, pictures, guidance, steps, scheduler, seed
SECONDS = 120  # for what takes one on an idle machine


def call(address: str, name: str, data: list[Any]) -> str:
    """The whole answer of the server to a call, as text."""
    sent = httpx.post(f"{address}gradio_api/call/{name}", json={"data": data}, timeout=SECONDS)
    assert sent.status_code == 200, sent.text
    return httpx.get(f"{address}gradio_api/call/{name}/{sent.json()['event_id']}", timeout=SECONDS).text


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def test_client_gets_pictures_and_code(client: Client, pipeline: DiTPipeline):
    status, preview, gallery, code = client.predict(*DRAW, api_name="/draw")
    assert status == "Drawn: dog, seed 7."
    assert Path(preview).suffix == ".png"
    assert [entry["caption"] for entry in gallery] == ["dog, seed 7"]
    assert '["dog"], num_images_per_label=1' in code
    assert 'from_pretrained("user/tiny")' in code


def test_names_of_two_classes_stand_in_the_code_as_ids(client: Client):
    code = client.predict(2, *DRAW[1:], api_name="/draw")[-1]
    assert '["crane, bird"]' in code  # the whole label is one class's


def test_client_starts_from_a_picture(client: Client, picture: Path):
    status, *_ = client.predict(handle_file(picture), 0, 0.6, *DRAW[2:], api_name="/change")
    assert status == "Drawn: cat, seed 7."
    layer = Image.new("RGBA", (8, 8))
    layer.paste((255, 0, 0, 255), (0, 0, 4, 8))
    layer.save(picture.with_name("layer.png"))
    painted = {"background": handle_file(picture), "layers": [handle_file(picture.with_name("layer.png"))]}
    editor = {**painted, "composite": None}
    status, _, gallery, _ = client.predict(editor, 3, 1.0, *DRAW[2:], api_name="/inpaint")
    assert status == "Drawn: crane, machine, seed 7."
    drawn, given = (np.asarray(Image.open(path).convert("RGB")) for path in (gallery[0]["image"], picture))
    np.testing.assert_array_equal(drawn[:, 4:], given[:, 4:])


def test_client_walks_between_two_classes(client: Client):
    status, _, gallery, _ = client.predict(0, 1, 3, *DRAW[2:], api_name="/between")
    assert status == "Drawn: cat to dog, seed 7."
    assert len(gallery) == 3


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (3, 10**6, "60"),
        (1, 10**4, "4"),
        (2, -1, "1"),
        (5, 2**40, "4294967295"),
        (0, 99, "not in the list of choices"),
        (4, "DiffusionPipeline", "not in the list of choices"),
    ],
)
def test_number_outside_its_bounds_is_answered_with_the_bound(client: Client, place: int, value: Any, message: str):
    data = [*DRAW]
    data[place] = value
    with pytest.raises(AppError, match=message):
        client.predict(*data, api_name="/draw")


@pytest.mark.parametrize(
    "body", ['{"data": [1, 1, NaN, 3, "DDIMScheduler", 7]}', '{"data": [', "[]", '{"data": 3}', ""]
)
def test_request_that_is_no_json_is_refused_without_a_stack_trace(address: str, body: str):
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{address}gradio_api/call/draw", content=body, headers=headers, timeout=SECONDS)
    if answer.status_code == 200:  # NaN is read as a number, and refused by the bounds
        answer = httpx.get(f"{address}gradio_api/call/draw/{answer.json()['event_id']}", timeout=SECONDS)
        assert answer.text.startswith("event: error")
    else:
        assert 400 <= answer.status_code <= 500
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


@pytest.mark.parametrize("data", [[], DRAW[:2], [None] * 6, [{"a": [1]}] * 6, [[1]] * 6])
def test_wrong_arguments_are_refused_without_a_stack_trace(address: str, data: list[Any]):
    answer = call(address, "draw", data)
    assert answer.startswith("event: error")
    assert "Traceback" not in answer
    assert ".py" not in answer


def test_large_request_is_refused_before_it_is_read_as_json(address: str):
    body = json.dumps({"data": ["x" * 10**7]})
    answer = httpx.post(f"{address}gradio_api/call/draw", content=body, timeout=SECONDS)
    assert (answer.status_code, answer.text) == (413, "the request is too large")
    chunks = (b" " * 2**16 for _ in range(100))  # without a content-length
    assert httpx.post(f"{address}gradio_api/call/draw", content=chunks, timeout=SECONDS).status_code == 413


def test_large_upload_is_refused(address: str):
    files = {"files": ("a.png", b"\0" * (LIMITS.max_upload_mb * 2**20 + 1))}
    assert httpx.post(f"{address}gradio_api/upload", files=files, timeout=SECONDS).status_code == 413


def test_picture_of_too_many_pixels_is_refused(pipeline: DiTPipeline, tmp_path: Path):
    Image.new("1", (7000, 7000)).save(tmp_path / "bomb.png")  # a few kB
    page = build_page(pipeline, "user/tiny", LIMITS)
    _, url, _ = serve(page, LIMITS, prevent_thread_lock=True, quiet=True)  # lowers the bound of Pillow
    client = Client(url, verbose=False)
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(tmp_path / "bomb.png"), 0, 0.6, *DRAW[2:], api_name="/change")
    client.close()
    page.close()
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/evil.png", "..\\..\\evil.png", "%2e%2e%2fevil.png"])
def test_name_of_an_upload_leads_to_no_other_folder(address: str, picture: Path, name: str):
    files = {"files": (name, picture.read_bytes(), "image/png")}
    answer = httpx.post(f"{address}gradio_api/upload", files=files, timeout=SECONDS)
    assert answer.status_code == 200
    (written,) = answer.json()
    assert Path(written).resolve().is_relative_to(Path(tempfile.gettempdir()).resolve() / "gradio")
    assert not Path("/etc/evil.png").exists()


@pytest.mark.parametrize("path", [__file__, "../../etc/passwd", "/etc/passwd", "/proc/self/environ"])
def test_path_from_a_client_is_not_opened(address: str, path: str):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = call(address, "change", [file, 0, 0.6, *DRAW[2:]])
    assert answer.startswith("event: error")
    assert "root:" not in answer
    assert httpx.get(f"{address}gradio_api/file={path}", timeout=SECONDS).status_code in (403, 404)
    assert httpx.get(f"{address}file={path}", timeout=SECONDS).status_code in (403, 404)


def test_address_from_a_client_is_not_fetched(address: str):
    asked: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/secret.png"
        for file in ({"path": url}, {"path": "a.png", "url": url}, {"url": url}):
            answer = call(address, "change", [{**file, "meta": {"_type": "gradio.FileData"}}, 0, 0.6, *DRAW[2:]])
            assert answer.startswith("event: error")
        server.shutdown()
    assert asked == []


def test_twenty_clients_at_once_lose_nothing(address: str):
    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(lambda seed: call(address, "draw", [*DRAW[:5], seed]), range(20))]
    captions = [f"dog, seed {seed}" for seed in range(20)]
    assert [caption for caption, answer in zip(captions, answers, strict=True) if caption not in answer] == []


@pytest.fixture
def held_up() -> Any:
    """A server whose model waits for an event, which one call runs and two may wait for."""
    pipeline, gate = make_pipeline(), threading.Event()
    pipeline.vae.decoder.register_forward_pre_hook(lambda *_: gate.wait(SECONDS) and None)
    limits = Limits(max_waiting=2)
    page = build_page(pipeline, "user/tiny", limits)
    _, url, _ = serve(page, limits, prevent_thread_lock=True, quiet=True)
    yield url, gate
    gate.set()
    page.close()


def test_flood_of_calls_is_refused_and_those_that_wait_are_served(held_up: tuple[str, threading.Event]):
    url, gate = held_up
    answers = [httpx.post(f"{url}gradio_api/call/draw", json={"data": DRAW}, timeout=SECONDS) for _ in range(10)]
    refused = [answer for answer in answers if answer.status_code == 503]
    accepted = [answer.json()["event_id"] for answer in answers if answer.status_code == 200]
    assert len(accepted) + len(refused) == 10
    assert 2 <= len(accepted) <= 3  # the first may have left the queue already
    assert "full" in refused[0].text
    gate.set()
    for event in accepted:
        assert "Drawn: dog" in httpx.get(f"{url}gradio_api/call/draw/{event}", timeout=SECONDS).text


def test_error_that_nobody_expected_says_nothing_of_the_server():
    pipeline = make_pipeline()

    def fail(*_: Any) -> None:
        raise RuntimeError(base64.b64decode("c2VjcmV0").decode())  # "secret"

    pipeline.vae.decoder.register_forward_pre_hook(fail)
    page = build_page(pipeline, "user/tiny", LIMITS)
    _, url, _ = serve(page, LIMITS, prevent_thread_lock=True, quiet=True)
    answer = call(url, "draw", DRAW)
    page.close()
    assert "event: error" in answer
    assert "secret" not in answer
    assert "Traceback" not in answer


@pytest.mark.parametrize("name", ["run/draw", "api/draw", "run/predict"])
def test_no_address_skips_the_queue(address: str, name: str):
    index = next(row["id"] for row in httpx.get(f"{address}config").json()["dependencies"] if row["api_name"] == "draw")
    body = {"data": [*DRAW, []], "fn_index": index, "session_hash": "a"}
    answer = httpx.post(f"{address}gradio_api/{name}", json=body, timeout=SECONDS)
    assert (answer.status_code, answer.text) == (404, "there is nothing here")


@pytest.mark.parametrize(
    "path", ["monitoring", "gradio_api/runs", "gradio_api/proxy=http://127.0.0.1/", "gradio_api/vibe-edit"]
)
def test_addresses_of_gradio_that_the_page_does_not_use_are_refused(address: str, path: str):
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{address}{path}", timeout=SECONDS).status_code == 404


def test_large_request_to_an_address_that_ends_like_that_of_uploads_is_refused(address: str):
    body = json.dumps({"data": ["x" * 3 * 10**6]})
    answer = httpx.post(f"{address}gradio_api/call/upload", content=body, timeout=SECONDS)
    assert (answer.status_code, answer.text) == (413, "the request is too large")


def test_many_files_of_one_upload_count_together(address: str):
    files = [("files", (f"{number}.png", b"\0" * 2**20)) for number in range(LIMITS.max_upload_mb + 1)]
    assert httpx.post(f"{address}gradio_api/upload", files=files, timeout=SECONDS).status_code == 413


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.png", b"no picture"), ("a.svg", b"<svg/>"), ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")],
)
def test_file_that_is_no_picture_is_answered_with_a_message(client: Client, tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match="cannot be read as a picture: choose one of PNG"):
        client.predict(handle_file(tmp_path / name), 0, 0.6, *DRAW[2:], api_name="/change")


def test_message_about_a_picture_names_no_path_of_the_server(client: Client, tmp_path: Path):
    Image.fromarray(np.full((8, 8), 7, dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(AppError, match="the picture: grey values") as caught:
        client.predict(handle_file(tmp_path / "a.tiff"), 0, 0.6, *DRAW[2:], api_name="/change")
    assert tempfile.gettempdir() not in str(caught.value)


def paint(address: str, content: bytes, **fields: str) -> httpx.Response:
    """Send a part of a painted picture as the browser's editor does."""
    components = httpx.get(f"{address}config", timeout=SECONDS).json()["components"]
    editor = next(row["id"] for row in components if row["type"] == "imageeditor")
    data = {"session_hash": "a", "component_id": str(editor), "fn_name": "accept_blobs", "id": "q", **fields}
    files = {"file": ("a.png", content)}
    return httpx.post(f"{address}gradio_api/component_server", data=data, files=files, timeout=SECONDS)


def test_picture_painted_in_a_browser_may_be_as_large_as_an_upload(address: str, picture: Path):
    content = picture.read_bytes() + b"\0" * 2 * LIMITS.max_request_mb * 2**20  # Pillow reads to the picture's end
    layer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(layer, "PNG")
    assert paint(address, content, type="background", index="null").status_code == 200
    assert paint(address, layer.getvalue(), type="layer", index="0").status_code == 200
    assert "Drawn: cat" in call(address, "inpaint", [{"id": "q"}, 0, 1.0, *DRAW[2:]])


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "layer", "index": "10000000"},
        {"type": "layer", "index": "-1"},
        {"type": "layer"},
        {"type": "other", "index": "0"},
        {"type": "background", "index": "null", "id": "q" * 100},
    ],
)
def test_painted_picture_of_odd_fields_is_refused(address: str, fields: dict[str, str]):
    assert paint(address, b"", **fields).status_code == 400


def test_painted_pictures_that_nobody_drew_from_do_not_fill_the_memory():
    kept = {
        str(number): EditorDataBlobs(background=b"x" * 10, layers=[None, b"y"], composite=None) for number in range(5)
    }
    drop_oldest(kept, 25)
    assert [*kept] == ["3", "4"]


def test_more_layers_than_a_client_paints_are_refused(address: str, picture: Path):
    with picture.open("rb") as content:
        (path,) = httpx.post(f"{address}gradio_api/upload", files={"files": content}, timeout=SECONDS).json()
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    painted = {"background": file, "layers": [file] * 9, "composite": None}
    assert "9 layers: paint on at most 8" in call(address, "inpaint", [painted, 0, 1.0, *DRAW[2:]])
