"""A headless Chromium for tests, and the log of what its pages requested."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --disable-default-apps --window-size=1280,1400"
)


def missing(reason: str) -> None:
    """Skip because a part is missing, or fail if a browser is required."""
    if os.environ.get("LPKERNEL_REQUIRE_BROWSER") == "1":
        pytest.fail(f"a browser test is required but cannot run: {reason}")
    pytest.skip(reason)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver of Debian's Chromium with a fresh profile."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        missing("no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    try:
        from selenium import webdriver
    except ImportError:
        missing("no selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(browser)
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(driver)))
    try:
        running.set_page_load_timeout(60)
        yield running
    finally:
        running.quit()


def asked(driver: Any) -> list[str]:
    """All addresses that pages requested since the last call, including those that were refused."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            found.append(message["params"]["url"])
    return found


def hosts(addresses: list[str]) -> set[str]:
    """The hosts of the addresses, with their ports; what is embedded in a page itself has none."""
    return {urlsplit(address).netloc for address in addresses if not address.startswith(("data:", "blob:", "chrome"))}
