"""A headless Chromium for the tests of this folder. Where there is none, they fail and say how to get one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder: only `make test-browser` runs them."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    driver, program = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not program:
        pytest.fail("there is no Chromium: on Debian, `apt-get install chromium chromium-driver`", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()
