"""The page in a browser: every tab by mouse and keyboard, wide and narrow, light and dark. `make check-web` runs it.

Screenshots are kept in build/web, to be looked at.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = Path("build/web")
SIZES = {"wide": (1400, 900), "narrow": (400, 800)}
SCHEMES = ("light", "dark")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]


@pytest.fixture(scope="module")
def address():
    command = [sys.executable, "-c", "from goca.cli.main import main; raise SystemExit(main())", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as server:
        try:
            yield re.search(r"http://\S+(?=,)", server.stdout.readline())[0]
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 130


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def window(browser, address, size, scheme):
    """The page in a fresh window; it may ask for nothing elsewhere, and complain of nothing."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    requested, complaints = [], []
    page.on("request", lambda sent: requested.append(sent.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)

    def photograph(name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{scheme}.png", full_page=True, animations="disabled")
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} px wider than the window"

    yield SimpleNamespace(page=page, photograph=photograph)
    context.close()
    elsewhere = {
        url for url in requested if urlsplit(url).hostname != "127.0.0.1" and url[:5] not in ("data:", "blob:")
    }
    assert elsewhere == set()
    assert complaints == []


@pytest.fixture(params=[(size, scheme) for size in SIZES for scheme in SCHEMES], ids="-".join)
def opened(request, browser, address):
    with window(browser, address, *request.param) as opened:
        yield opened


@pytest.fixture
def opened_wide(browser, address):
    with window(browser, address, "wide", "light") as opened:
        yield opened


def drawn(page):
    """The addresses of the images in sight, once all are loaded."""
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    return set(page.evaluate("[...document.images].filter(image => image.checkVisibility()).map(image => image.src)"))


def redrawn(page, before):
    """The same, once another image is among them."""
    page.wait_for_function(
        "before => [...document.images].some(image => image.complete && !before.includes(image.src))", arg=list(before)
    )
    page.wait_for_timeout(200)
    return drawn(page)


def name_classes(page, *names):
    field = page.locator("#segment-classes input")
    for name in names:
        field.fill(name)
        field.press("Enter")
    field.press("Escape")


def segment(page, *files):
    page.locator("#segment-files input[type=file]").set_input_files(files)
    page.get_by_text(Path(files[-1]).stem, exact=False).first.wait_for()
    page.locator("#segment-run").click()
    page.locator(".goca-legend tbody tr").first.wait_for()


def test_an_image_is_segmented_recoloured_and_downloaded(opened, tmp_path):
    page = opened.page
    page.get_by_role("button", name="Segment").wait_for()
    opened.photograph("start")
    name_classes(page, "cat", "grass", "sky")
    segment(page, "examples/cat.png")
    first = redrawn(page, ())
    opened.photograph("segment")
    assert page.locator(".goca-legend tbody th").all_inner_texts() == ["cat", "grass", "sky"]
    page.locator("input[type=color]").first.evaluate(
        "input => { input.value = '#0044ff'; input.dispatchEvent(new Event('change', {bubbles: true})) }"
    )
    recoloured = redrawn(page, first)
    page.locator(".goca-legend tbody input[type=checkbox]").nth(2).press("Space")
    redrawn(page, recoloured)
    opened.photograph("segment-recoloured")
    page.locator("#segment-format input").click()
    page.get_by_role("option", name="coco", exact=True).click()
    with page.expect_download() as started:
        page.locator("#segment-download").click()
    assert started.value.suggested_filename == "cat.coco.json"
    started.value.save_as(tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["cat", "grass", "sky"]
    page.get_by_role("button", name="More").first.click()
    opened.photograph("segment-more")


def test_an_image_is_generated_with_guidance_and_without(opened):
    page = opened.page
    page.get_by_role("tab", name="Generate").click()
    page.locator("#generate-prompt textarea").fill("cat, grass, sky")
    page.get_by_role("button", name="More").last.click()
    page.get_by_label("Steps").fill("4")
    page.locator("#generate-run").click()
    page.get_by_text("Heat maps of its words").wait_for()
    page.get_by_text("Guided as strongly").wait_for()
    assert len(drawn(page)) == 6  # plain, guided, masks, and a map of each word
    opened.photograph("generate")


def test_several_images_and_what_goes_wrong(opened_wide, tmp_path):
    page = opened_wide.page
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path("examples/cat.png").read_bytes()[:900])
    name_classes(page, "cat", "sky")
    page.locator("#segment-files input[type=file]").set_input_files([broken])
    page.get_by_text("broken", exact=False).first.wait_for()
    page.locator("#segment-run").click()
    page.get_by_role("alert").get_by_text("cannot be read").wait_for()
    opened_wide.photograph("segment-refused")
    page.get_by_label("Clear").first.click()
    scene = "src/goca/bundled/scenes/000.png"
    segment(page, broken, "examples/cat.png", scene)
    page.get_by_text("left out: broken.png").wait_for()
    first = redrawn(page, ())
    page.get_by_label("Thumbnail 2", exact=False).or_(page.locator(".thumbnail-item").nth(1)).first.click()
    redrawn(page, first)
    opened_wide.photograph("segment-several")
    page.locator("#segment-format input").click()
    page.get_by_role("option", name="yolo", exact=True).click()
    with page.expect_download() as started:
        page.locator("#segment-download").click()
    assert started.value.suggested_filename == "goca.yolo.zip"
    started.value.save_as(tmp_path / "yolo.zip")
    with zipfile.ZipFile(tmp_path / "yolo.zip") as archive:
        assert {"000.txt", "cat.txt"} <= {Path(name).name for name in archive.namelist()}


def test_names_from_outside_are_text_and_a_generation_can_be_stopped(opened_wide):
    page = opened_wide.page
    name_classes(page, "<b>${1+1}{{x}}</b>")
    page.locator("#segment-files input[type=file]").set_input_files(["examples/cat.png"])
    page.get_by_text("cat.png").wait_for()
    page.locator("#segment-run").click()
    page.get_by_role("alert").get_by_text("<b>${1+1}{{x}}</b>").wait_for()
    page.get_by_role("tab", name="Generate").click()
    page.locator("#generate-prompt textarea").fill("cat, grass")
    page.locator("#generate-run").click()
    page.get_by_text(re.compile("step [0-9]+ of 100")).wait_for()
    opened_wide.photograph("generate-running")
    page.locator("#generate-stop").click()
    page.get_by_text("Stopped.").wait_for()
    opened_wide.photograph("generate-stopped")
    page.get_by_role("button", name="More").last.click()
    page.get_by_label("Steps").fill("2")
    page.locator("#generate-run").click()
    page.get_by_text("Guided as strongly").wait_for()
