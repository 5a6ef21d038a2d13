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
    page.set_default_timeout(120_000)
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
    """The addresses of the images in sight, once all are loaded, also those that the reader has yet to scroll to."""
    page.evaluate("[...document.images].forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    return set(page.evaluate("[...document.images].filter(image => image.checkVisibility()).map(image => image.src)"))


def redrawn(page, before):
    """The same, once another image is among them."""
    page.wait_for_function(
        "before => [...document.images].some(image => image.complete && !before.includes(image.src))", arg=list(before)
    )
    page.wait_for_timeout(200)
    return drawn(page)


def name_classes(page, *names, tab="segment"):
    field = page.locator(f"#{tab}-classes input")
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
    page.get_by_text("Heat maps of the prompt's words").wait_for()
    page.get_by_text("Guidance is as strong").wait_for()
    together = drawn(page)
    assert len(together) == 6  # plain, guided, masks, and a map of each word
    opened.photograph("generate")
    page.locator("#generate-step input[type=range]").fill("1")
    page.get_by_text("Step 1 of 4.").wait_for()
    assert len(redrawn(page, together) & together) == 2  # the images are the same
    opened.photograph("generate-step")
    with page.expect_download() as started:
        page.locator("#generate-download").click()
    assert started.value.suggested_filename == "steps.gif"


def test_what_a_pixel_and_a_word_attend_to(opened):
    page = opened.page
    page.get_by_role("tab", name="Inspect").click()
    opened.photograph("inspect-start")
    name_classes(page, "cat", "sky", tab="inspect")
    page.locator("#inspect-file input[type=file]").set_input_files(["examples/cat.png"])
    page.locator("#inspect-file").get_by_text("12.2 KB").wait_for()
    page.locator("#inspect-run").click()
    page.locator(".goca-layers li").first.wait_for()
    # The first word, in 11 layers and their heads.
    assert page.get_by_role("img", name="cat in mid_block", exact=False).count() == 9
    assert page.get_by_role("img", name=re.compile("all heads$")).count() == 11
    before = drawn(page)
    opened.photograph("inspect")
    picture = page.locator("#inspect-picture img")
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.25, "y": box["height"] * 0.75})
    page.get_by_text(re.compile("^Pixel 3[12], 9[56]: water gets")).wait_for()
    assert page.get_by_label("x, 0 to 127").input_value() in ("31", "32")
    assert page.locator("#inspect-words th").first.inner_text() == "water"
    before = redrawn(page, before)
    # The same without a mouse.
    page.get_by_label("y, 0 to 127").fill("20")
    page.get_by_label("x, 0 to 127").fill("30")
    page.get_by_text("Pixel 30, 20: sky gets").wait_for()
    page.get_by_label("x, 0 to 127").press("ArrowUp")
    page.get_by_text("Pixel 31, 20: sky gets").wait_for()
    before = redrawn(page, before)
    page.get_by_role("button", name="sky", exact=True).press("Enter")
    page.get_by_role("heading", name="sky, layer by layer").wait_for()
    assert page.get_by_role("radio", name="sky").is_checked()
    for stage in ("raw", "shared", "rescaled"):
        page.get_by_role("radio", name=stage).check()
        page.locator("#inspect-heat").get_by_text(f"sky, {stage}").wait_for()
        before = redrawn(page, before)
    opened.photograph("inspect-word")
    page.get_by_label("y, 0 to 127").fill("128")
    page.get_by_role("alert").get_by_text("give a number from 0 to 127 (y)").wait_for()


def test_generate_by_keyboard(opened_wide):
    page = opened_wide.page
    page.get_by_role("tab", name="Segment").focus()

    def reach(selector):
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached")

    reach("#tab-generate-button")
    page.keyboard.press("Enter")
    reach("#generate-prompt textarea")
    page.keyboard.type("cat, grass")
    reach("[data-testid=textbox]")
    page.keyboard.press("Control+A")
    page.keyboard.type("3")
    reach("input[type=radio][value=none]")
    page.keyboard.press("Space")
    assert page.get_by_role("radio", name="none").is_checked()
    reach("button.label-wrap")
    page.keyboard.press("Enter")
    page.get_by_label("Steps").wait_for()
    reach("[data-testid=textbox]")
    page.keyboard.type("3")
    reach("#generate-run")
    page.keyboard.press("Enter")
    page.get_by_text("Heat maps of the prompt's words").wait_for()
    reach("#generate-step input[type=range]")
    page.keyboard.press("ArrowRight")
    page.get_by_text("Step 1 of 3.").wait_for()
    page.keyboard.press("End")
    page.get_by_text("Step 3 of 3.").wait_for()


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
    page.get_by_text("Guidance is as strong").wait_for()
