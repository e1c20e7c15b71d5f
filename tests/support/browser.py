"""Look at a report page in a real headless browser, at a width and in a colour scheme."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"

# Functions that look at the page in the browser; each gives a list of what is wrong.
LOOKS = """
// a phone's window grows with what is too wide for it, this does not
const sides = () => document.documentElement.clientWidth;
const scrolls = element => element.closest('.box, .picture') && !element.matches('.box, .picture');
const name = element => `<${element.tagName} ${element.className}> ${element.textContent.trim().slice(0, 40)}`;
const ownTexts = element => [...element.childNodes].filter(node => node.nodeType === 3 && node.data.trim());
const rectangles = (node, start, end) => {
  const range = document.createRange();
  range.setStart(node, start);
  range.setEnd(node, end);
  return [...range.getClientRects()].filter(rectangle => rectangle.width > 0);
};
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = colour => {
  const [red, green, blue] = channels(colour).map(value => value / 255).map(
    value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const paper = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = getComputedStyle(at).backgroundColor;
    if (channels(colour)[3] !== 0) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const elements = () => [...document.body.querySelectorAll('*')];
const looks = {
  // what reaches over the sides of the window
  wide: () => [
    ...(document.documentElement.scrollWidth > sides() ? ['the page scrolls sideways'] : []),
    ...elements().filter(element => !scrolls(element)).filter(element => {
      const {left, right, width} = element.getBoundingClientRect();
      return width > 0 && (left < -0.5 || right > sides() + 0.5);
    }).map(name)],
  // words of tables, and words with a hyphen elsewhere, that are cut over two lines though they fit into one
  cut: () => elements().filter(
    element => element.closest('th, td, main .word') && !element.closest('.facts td:nth-child(2)')
  ).flatMap(element => {
    const words = element.closest('th, td') ? /[^\\s/]+/g : /\\S+/g;
    return ownTexts(element).flatMap(node => [...node.data.matchAll(words)].filter(word => {
      const parts = rectangles(node, word.index, word.index + word[0].length);
      const width = parts.reduce((sum, part) => sum + part.width, 0);
      return width < 0.8 * sides() && new Set(parts.map(part => Math.round(part.top))).size > 1;
    }).map(word => word[0]));
  }),
  // columns of numbers whose points are not below each other
  ragged: () => [...document.querySelectorAll('table')].flatMap(table => {
    const places = {};
    for (const cell of table.querySelectorAll('tbody td:not(.left)')) {
      const point = cell.textContent.search(/(?<=^\\D*\\d*)\\.\\d/);
      if (point < 0) continue;
      let passed = 0;
      const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
      while (texts.nextNode() && passed + texts.currentNode.length <= point) passed += texts.currentNode.length;
      const [rectangle] = rectangles(texts.currentNode, point - passed, point - passed + 1);
      if (rectangle) (places[cell.cellIndex] ??= []).push(rectangle.left);
    }
    return Object.entries(places).filter(([, lefts]) => Math.max(...lefts) - Math.min(...lefts) > 0.6)
      .map(([column, lefts]) => `column ${column}: ${lefts.map(Math.round)}`);
  }),
  // boxes whose first column does not stay in its place
  moved: () => [...document.querySelectorAll('.box')].filter(box => {
    box.scrollLeft = box.scrollWidth;
    const cells = [...box.querySelectorAll('tr > :first-child')].filter(cell => cell.offsetWidth > 0);
    const left = box.getBoundingClientRect().left;
    const moved = cells.some(cell => Math.abs(cell.getBoundingClientRect().left - left) > 0.6);
    box.scrollLeft = 0;
    return moved;
  }).map(name),
  // texts that hardly differ from what is behind them
  faint: () => elements().filter(element => ownTexts(element).length).filter(element => {
    const [low, high] = [getComputedStyle(element).color, paper(element)].map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05) < 4.5;
  }).map(name),
  // entries of the table of contents that lead nowhere
  lost: () => [...document.querySelectorAll('nav a')].filter(
    link => !document.getElementById(link.hash.slice(1))).map(name),
};
"""


@dataclass(frozen=True)
class Browser:
    """A browser that looks at one page at a time."""

    driver: Any

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Open `page` in a window of `width` pixels for a reader who prefers the `scheme` "light" or "dark"."""
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
        self.driver.get(page.as_uri())

    def ask(self, expression: str) -> Any:
        """Give the value of an expression of the page's language."""
        return self.driver.execute_script(f"{LOOKS}\nreturn {expression};")

    def wrong(self) -> dict[str, list[str]]:
        """Give what is wrong with the page by kind, with folded parts open; kinds without any are left out."""
        self.ask("document.querySelectorAll('details').forEach(part => part.open = true)")
        found = self.ask("Object.fromEntries(Object.entries(looks).map(([kind, look]) => [kind, look()]))")
        found["console"] = [entry["message"] for entry in self.driver.get_log("browser")]
        return {kind: texts for kind, texts in found.items() if texts}


@contextlib.contextmanager
def headless_browser() -> Iterator[Browser]:
    """Start a browser, and end it after the block; the test is skipped where none is installed."""
    programs = [shutil.which(name) for name in BROWSERS]
    program, driver = next(filter(None, programs), None), shutil.which(DRIVER)
    if program is None or driver is None:
        pytest.skip(f"needs {DRIVER} and one of {', '.join(BROWSERS)}")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = program
    # root in a container has neither a sandbox nor much shared memory
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # the driver's path is given, so that selenium looks for none on the network
    chrome = Chrome(options=options, service=Service(driver))
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()
