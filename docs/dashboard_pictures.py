"""The pictures in docs/dashboard.md, taken with a headless Chromium of a dashboard over real runs.

    hedgerow simulate mnist --out /tmp/pictures/mnist --set faults.dropout=0.1 --set server.rounds=30
    hedgerow simulate private --out /tmp/pictures/private --set server.rounds=40
    python docs/dashboard_pictures.py /tmp/pictures

Needs the dev extra, and a Chromium.
"""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent
# File, address, width, height, colour scheme, pixels a CSS pixel.
PICTURES = (
    ("dashboard-light.png", "#/runs/mnist", 1280, 860, "light", 1),
    ("dashboard-dark.png", "#/runs/private", 1280, 900, "dark", 1),
    ("dashboard-phone.png", "#/runs/mnist", 360, 740, "light", 2),
)
MOST_BYTES = 200_000
START_S = 60.0


def main(runs: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    command = [Path(sys.executable).with_name("hedgerow"), "dashboard", runs, "--port", str(port)]
    server = subprocess.Popen(command)  # noqa: S603 - our own command
    try:
        base = f"http://127.0.0.1:{port}/"
        wait_for(base)
        with sync_playwright() as playwright:
            chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, *view in PICTURES:
                (FOLDER / str(name)).write_bytes(picture(browser, base, *view))
            browser.close()
    finally:
        server.terminate()
        server.wait()


def wait_for(base: str) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{base}healthz", timeout=2):  # noqa: S310 - loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"{base} does not answer")


def picture(browser: Browser, base: str, place: str, width: int, height: int, scheme: str, scale: int) -> bytes:
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=scale,
    )
    page.goto(base + place)
    page.wait_for_selector(".plot canvas")
    page.wait_for_timeout(1000)  # until the last plot is drawn
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.close()
    content = io.BytesIO()
    shot.save(content, "PNG", optimize=True)
    if content.tell() > MOST_BYTES:
        raise SystemExit(f"{place}: the picture has {content.tell():,} bytes, {MOST_BYTES:,} may")
    return content.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
