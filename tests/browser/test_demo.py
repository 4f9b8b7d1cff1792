"""The demo in a browser: a click makes a picture, a bad value a message, twenty clients lose nothing."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[2]
SECONDS = 90  # for what takes one on an idle machine


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `dit-hf demo` with the shipped model, in a process of its own."""
    program = "from dit_hf.cli import main; main()"
    command = [sys.executable, "-u", "-c", program, "demo", "examples/assets/dit-emoji"]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("demo"))}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        lines = iter(server.stdout.readline, "")
        found = next((re.search(r"http://[\d.:]+", line) for line in lines if "http" in line), None)
        assert found, "the demo ended before it served a page"
        yield found[0]
        server.terminate()


def find(browser: webdriver.Chrome, selector: str) -> WebElement:
    return WebDriverWait(browser, SECONDS).until(lambda page: page.find_element(By.CSS_SELECTOR, selector))


def open_page(browser: webdriver.Chrome, address: str, width: int = 1280) -> None:
    size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    find(browser, "#draw")


def choose_steps(browser: webdriver.Chrome, text: str) -> None:
    field = find(browser, "#steps input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text, Keys.TAB)


def wait_for(browser: webdriver.Chrome, selector: str, text: str) -> None:
    WebDriverWait(browser, SECONDS).until(
        lambda page: any(text in each.text for each in page.find_elements(By.CSS_SELECTOR, selector))
    )


def test_click_makes_a_picture_and_its_code(browser: webdriver.Chrome, address: str):
    open_page(browser, address)
    choose_steps(browser, "4")
    find(browser, "#draw").click()
    wait_for(browser, "#status", "Drawn: monkey face, seed 0.")
    picture = find(browser, "#gallery img")
    size = WebDriverWait(browser, SECONDS).until(
        lambda page: page.execute_script("return arguments[0].naturalWidth", picture)
    )
    assert size == 64
    wait_for(browser, "#code", "num_inference_steps=4")


def test_bad_value_makes_a_message(browser: webdriver.Chrome, address: str):
    open_page(browser, address)
    find(browser, "#seed input").send_keys(Keys.CONTROL, "a")
    find(browser, "#seed input").send_keys("99999999999", Keys.TAB)
    find(browser, "#draw").click()
    wait_for(browser, ".toast-body, .toast-text, [data-testid=toast-body]", "4294967295")


@pytest.mark.parametrize("width", [400, 1280])
def test_page_is_no_wider_than_its_window(browser: webdriver.Chrome, address: str, width: int):
    open_page(browser, address, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    button, status = find(browser, "#draw").rect, find(browser, "#status").rect
    assert (status["y"] > button["y"]) == (width == 400)  # below each other only where it is narrow


def test_twenty_clients_at_once_lose_nothing(address: str):
    def draw(seed: int) -> str:
        data = (seed, 1, 2.0, 2, "DPMSolverMultistepScheduler", seed)
        return Client(address, verbose=False, httpx_kwargs={"timeout": SECONDS}).predict(*data, api_name="/draw")[0]

    with ThreadPoolExecutor(20) as pool:
        answers = [*pool.map(draw, range(20))]
    assert [answer.endswith(f"seed {seed}.") for seed, answer in enumerate(answers)] == [True] * 20
