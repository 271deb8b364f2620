"""Notebook 06 in a real browser: in JupyterLab, as a saved page without a kernel, and served by voila.

`make browser-check`, or `python tests/browser/check_slider.py [FOLDER]`: pictures go to FOLDER, measured times to the
screen. Without playwright, voila or Chromium (named by CHROMIUM, else `chromium` on the path) it says so and ends well.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steerlib.tables import ROOT

NOTEBOOK = "notebooks/06_alpha_explorer.ipynb"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
COPIED = ("notebooks", "steerlib", "results")
SLOW = 240_000  # milliseconds for a cell or a decode on a busy machine
HARMLESS = ("fontawesome",)  # what voila asks a CDN for; it does without

RATER = "checker"
NAMED = ('panel_rater: str = \\"\\"', f'panel_rater: str = \\"{RATER}\\"')
"""The blind panel's rater in the copied notebook, whose cells stand in JSON."""
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">"
DONE = "() => ![...document.querySelectorAll('.jp-InputPrompt')].some(one => one.innerText.includes('*'))"
FAILED = "document.querySelector('[data-mime-type=\"application/vnd.jupyter.error\"]')"
"""The first error of a cell."""
CUT = """() => [...document.querySelectorAll('.widget-label')]
    .filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"""
"""Names of controls that do not fit."""
DRAGGED = """async () => {
    const slider = document.querySelector('.ax-slider'), times = [];
    for (let i = 0; i <= 100; i++) {
        const start = performance.now();
        slider.value = slider.max * i / 100;
        slider.dispatchEvent(new Event('input'));
        await new Promise(requestAnimationFrame);
        document.querySelector('.ax-body').getBoundingClientRect();
        times.push(performance.now() - start);
    }
    times.sort((a, b) => a - b);
    return [times[50], times[100]];
}"""
"""Milliseconds from moving the slider to the next frame with the answer laid out: median and worst of 101 stops."""


def main() -> None:
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit(print("skipped: playwright is not installed (pip install -e '.[browser]')"))
    if not browser:
        sys.exit(print("skipped: no Chromium here (apt-get install chromium); or name one in CHROMIUM"))
    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="alpha-explorer-"))
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=QUIET)
        opened = {"viewport": {"width": 1400, "height": 1000}, "accept_downloads": True}
        page = chromium.new_page(**opened)
        complaints, run = watched(page), Path(folder) / "work" / "results" / "quick"
        saved, published = Path(folder) / "saved.html", run / "figures" / "alpha_explorer.html"
        with served(Path(folder), "jupyterlab") as address:
            check_first_answer(page, address)
            check_slider(page, pictures)
            with page.expect_download(timeout=SLOW) as download:
                page.get_by_role("button", name="Save this page").first.click()
            download.value.save_as(saved)
            check_questions(page)
            check_vector_slider(page, pictures)
            check_panel(page, run, pictures)
            page.close()  # or it complains of the server that ends
        for file, picture in ((saved, "saved.png"), (published, "alpha_explorer.png")):
            check_saved_page(chromium.new_page(**opened), file, pictures / picture)
        with served(Path(folder), "voila") as address:
            check_voila(chromium.new_page(**opened), address, pictures)
    assert not complaints, complaints
    print(f"no console error and no outside request; pictures in {pictures}")


@contextlib.contextmanager
def served(folder: Path, program: str) -> Iterator[str]:
    """JupyterLab or voila on a copy of the checkout, with no settings of the user's; the notebook's address."""
    for name in COPIED:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / "work" / name, dirs_exist_ok=True)
    notebook = folder / "work" / NOTEBOOK
    notebook.write_text(notebook.read_text("utf-8").replace(*NAMED), "utf-8")
    homes = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(folder / name.lower()) for name in homes}
    own |= {"STEERLIB_RESULTS": str(folder / "work" / "results"), "PYTHONPATH": str(folder / "work")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex(8)
    if program == "voila":
        command = f"voila {NOTEBOOK} --no-browser --port={port} --Voila.ip=127.0.0.1"
        address = f"http://127.0.0.1:{port}/"
    else:
        command = (
            f"jupyterlab --no-browser --allow-root --ServerApp.ip=127.0.0.1 --ServerApp.port={port}"
            f" --ServerApp.port_retries=0 --IdentityProvider.token={token}"
        )
        address = f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}&reset"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | own}
    server = subprocess.Popen([sys.executable, "-m", *command.split()], cwd=folder / "work", **quiet)
    try:
        wait_for(port)  # no request: each one to voila runs the notebook
        yield address
    finally:
        server.terminate()
        server.wait(20)


def wait_for(port: int, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.25)


def watched(page: Any) -> list[str]:
    """What must stay empty: errors of the console, failed requests, requests that leave this machine."""
    complaints: list[str] = []
    inside = re.compile(r"^((https?|wss?)://127\.0\.0\.1|data:|blob:|file:)")

    def asked(request: Any) -> None:
        if not inside.match(request.url):
            complaints.append(f"outside: {request.url[:120]}")

    page.on("console", lambda m: complaints.append(m.text[:200]) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)[:200]))
    page.on("requestfailed", lambda r: complaints.append(f"failed: {r.url[:120]}"))
    page.on("request", asked)
    return complaints


def state(page: Any, words: str) -> None:
    """Wait until the widget says so."""
    page.wait_for_selector(f".explorer-state >> text=/{words}/", timeout=SLOW)


def menu(page: Any, name: str, item: str) -> None:
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.get_by_role("menuitem", name=re.compile(f"^{item}")).first.click()


def check_first_answer(page: Any, address: str) -> None:
    """Run All, and the seconds until a text of the model stands there."""
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=SLOW)
    # The toolbar says idle before the kernel is attached, and "Run All" then asks for a kernel instead.
    page.wait_for_selector("#jp-main-statusbar >> text=/\\| Idle/", timeout=SLOW)
    started = time.perf_counter()
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(
        f"() => document.querySelector('.ax-stream')?.textContent || {FAILED}", timeout=SLOW
    )
    assert not page.evaluate(FAILED), page.evaluate(f"{FAILED}.innerText")
    print(f"Run All to first text: {time.perf_counter() - started:.1f} s")
    state(page, "idle: \\d+ different")
    print(f"Run All to all answers: {time.perf_counter() - started:.1f} s")
    page.wait_for_function(DONE, timeout=SLOW)
    page.wait_for_timeout(1000)  # Run All ends at the last cell and scrolls there


def check_slider(page: Any, pictures: Path) -> None:
    """Keys and mouse move it; every answer stands where the table puts it; its size at two widths."""
    slider, where = page.locator(".ax-slider").first, page.locator(".ax-where").last
    slider.focus()
    page.keyboard.press("Home")
    assert where.inner_text().startswith("alpha = 0, this answer from 0 to "), where.inner_text()
    texts = set()
    for _ in range(23):
        texts.add(page.locator(".ax-text").last.inner_text())
        page.keyboard.press("PageUp")
    assert len(texts) > 3 and where.inner_text().startswith("alpha = 2.2,"), (len(texts), where.inner_text())
    page.keyboard.press("ArrowLeft")
    assert where.inner_text().startswith("alpha = 2.19,"), where.inner_text()
    for width in (1400, 1000):
        page.set_viewport_size({"width": width, "height": 1000})
        slider.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        at = slider.bounding_box()
        assert at["width"] >= 500, (width, at)
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move(at["x"] + at["width"] / 4, at["y"] + at["height"] / 2, steps=5)
        page.mouse.up()
        assert 0.4 < float(slider.input_value()) < 0.7, slider.input_value()
        heights = [page.locator(name).first.bounding_box() for name in (".ax-curves", ".ax-boxes")]
        assert heights[1]["y"] + heights[1]["height"] - heights[0]["y"] < 700, heights
        assert not page.evaluate(CUT), page.evaluate(CUT)
        page.screenshot(path=str(pictures / f"slider-{width}.png"))
    page.set_viewport_size({"width": 1400, "height": 1000})
    print("slider, moved to drawn: median {:.1f} ms, worst {:.1f} ms".format(*page.evaluate(DRAGGED)))
    page.get_by_role("button", name="Pin this answer").first.click()
    assert page.locator(".ax-box").count() == 3
    page.get_by_role("button", name="Unpin").first.click()
    page.locator(".ax-text").last.focus()
    page.keyboard.press("ArrowRight")
    assert "steered:" in page.locator(".ax-info").first.inner_text()


def check_questions(page: Any) -> None:
    """Words of one's own, Cancel and the kernel's interrupt, markup, and a prompt of the list."""
    text, decode = page.get_by_label("Text", exact=True), page.get_by_role("button", name="Decode")
    text.fill("The weather in the mountains is")
    page.wait_for_selector(".ax-stale", timeout=2000)
    asked = time.perf_counter()
    decode.click()
    page.wait_for_function("() => document.querySelector('.ax-stream').textContent", timeout=SLOW)
    print(f"new prompt to first text: {time.perf_counter() - asked:.2f} s")
    state(page, "decoding")
    pressed = time.perf_counter()
    page.get_by_role("button", name="Cancel").click()
    state(page, "cancelled")
    print(f"Cancel: {time.perf_counter() - pressed:.2f} s")
    decode.click()
    state(page, "decoding")
    pressed = time.perf_counter()
    menu(page, "Kernel", "Interrupt Kernel")
    state(page, "cancelled")
    print(f"interrupt: {time.perf_counter() - pressed:.2f} s")
    text.fill(HOSTILE)
    decode.click()
    state(page, "idle: \\d+ different")
    assert page.title() != "broken" and not page.locator("img[src=x]").count()
    page.get_by_label("Prompt", exact=True).select_option(index=1)
    page.wait_for_selector(".ax-stale", timeout=2000)
    state(page, "idle: \\d+ different")


def check_vector_slider(page: Any, pictures: Path) -> None:
    """A vector beside the rule, by keyboard: answers on a grid of alpha; without a run's vectors there is no slider."""
    slider = page.locator(".widget-hslider", has_text="Vector alpha")
    if not slider.is_visible():
        return print("no vectors of a run (make run): the second slider was not checked")
    slider.locator(".noUi-handle").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    state(page, "idle: 9 alphas")
    assert slider.locator(".widget-readout").inner_text() == "0.30"
    page.locator(".ax-slider").first.focus()
    page.keyboard.press("End")
    where = page.locator(".ax-where").last.inner_text()
    assert where == "alpha = 2.2, answer decoded at 2.2", where
    assert "(0.3)" in page.locator(".ax-box b").last.inner_text()
    page.screenshot(path=str(pictures / "vector-slider.png"))


def check_panel(page: Any, run: Path, pictures: Path) -> None:
    """The keys 1, 2 and 0 choose in the blind panel, are on disk at once, and reach no shortcut of JupyterLab's."""
    panel = page.locator(".blind-panel")
    if not (run / "tables" / "verdict").exists():
        return print("no run with a verdict (make run): the blind panel was not checked")
    cells = page.locator(".jp-MarkdownCell").count()
    panel.scroll_into_view_if_needed()
    panel.focus()
    page.screenshot(path=str(pictures / "panel.png"))
    for number, key in enumerate("120", start=1):
        page.wait_for_selector(f".blind-panel >> text=/Pair {number} of/", timeout=SLOW)
        page.keyboard.press(key)
    page.wait_for_selector(".blind-panel >> text=/Pair 4 of/", timeout=SLOW)
    kept = (run / "preferences" / f"{RATER}.jsonl").read_text().splitlines()
    assert [json.loads(line)["choice"] for line in kept] == [1, 2, 0], kept
    assert page.locator(".jp-MarkdownCell").count() == cells


def check_saved_page(page: Any, saved: Path, picture: Path) -> None:
    """No kernel, no server, no network: the slider moves, of the page that was saved and of notebook 06's own."""
    complaints = watched(page)
    page.goto(saved.as_uri())
    slider = page.locator(".ax-slider")
    slider.focus()
    page.keyboard.press("Home")
    first = page.locator(".ax-text").last.inner_text()
    page.keyboard.press("End")
    assert page.locator(".ax-text").last.inner_text() != first
    page.screenshot(path=str(picture), full_page=True)
    assert not complaints, complaints
    print(f"{saved.name} works alone, {saved.stat().st_size / 1000:.0f} kB")


def check_voila(page: Any, address: str, pictures: Path) -> None:
    complaints = watched(page)
    page.goto(address, timeout=SLOW, wait_until="commit")
    state(page, "idle: \\d+ different")
    slider = page.locator(".ax-slider").first
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".ax-where").last.inner_text().startswith("alpha = 0, this answer from 0 to ")
    page.screenshot(path=str(pictures / "voila.png"))
    outside = [one for one in complaints if "outside" in one or "failed" in one]
    assert not [one for one in outside if not any(name in one for name in HARMLESS)], complaints


if __name__ == "__main__":
    main()
