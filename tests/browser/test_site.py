"""The site of the documents in a browser: the search finds an argument in the reference."""

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[2]
SECONDS = 60  # for what takes one on an idle machine


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the site, built and served."""
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-c", "docs", ".", "build/site"], cwd=ROOT, check=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=ROOT / "build/site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_search_finds_an_argument_of_the_pipeline(browser: webdriver.Chrome, address: str):
    browser.get(address)
    wait = WebDriverWait(browser, SECONDS)
    field = wait.until(lambda page: page.find_element(By.CSS_SELECTOR, "input[name=q]"))
    field.send_keys("guidance_interval")
    field.submit()
    # Sphinx lists what it finds one by one, and says at the end how many there are.
    wait.until(lambda page: "found" in page.find_element(By.CSS_SELECTOR, "p.search-summary").text)
    found = browser.find_elements(By.CSS_SELECTOR, "ul.search li a")
    links = [link.get_attribute("href") for link in found]
    assert any("docs/sampling.html" in link for link in links)
    assert any("docs/reference/dit_hf.html" in link for link in links)
