"""A real browser for tests of the pages; tests that ask for it skip where there is none."""

import pytest

from benchmarks.chromium import Chromium, Page, find_chromium

WIDTHS = (390, 1280)  # a phone, a desktop


@pytest.fixture(scope="session")
def chromium():
    """One headless Chromium for all tests."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("pages in a real browser: install Chromium (Debian: apt install chromium)")
    with Chromium(executable) as browser:
        yield browser


def contrast(page: Page) -> list[str]:
    """Texts with less than 4.5 : 1 contrast to the colour behind them (WCAG 2.2, 1.4.3)."""
    found: list[str] = page.evaluate(_CONTRAST)
    return found


def sticking_out(page: Page) -> list[str]:
    """Elements that reach beyond the window and cannot be scrolled to within a box of their own."""
    found: list[str] = page.evaluate(_STICKING_OUT)
    return found


_CONTRAST = r"""(() => {
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgba = (text) => [...text.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
  const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] + b[i] * (1 - a[3]));
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]);
  };
  const bad = new Set();
  document.querySelectorAll("body *").forEach((e) => {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "NOSCRIPT", "OPTION"].includes(e.tagName) || !e.checkVisibility()) return;
    if (e.disabled) return;
    const style = getComputedStyle(e);
    const back = behind(e), ink = rgba(e instanceof SVGElement ? style.fill : style.color);
    ink[3] *= Number(style.opacity);
    const [a, b] = [light(over(ink, back)), light(back)].sort((x, y) => y - x);
    const name = `${e.tagName}.${e.className.baseVal ?? e.className}`;
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.add(`${name}: ${e.textContent.trim().slice(0, 30)}`);
  });
  return [...bad];
})()"""

_STICKING_OUT = r"""(() => {
  const scrolls = (e) => {
    for (; e; e = e.parentElement) if (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const bad = [];
  document.querySelectorAll("body *").forEach((e) => {
    const box = e.getBoundingClientRect(), wide = document.documentElement.clientWidth;
    const name = `${e.tagName}.${e.className.baseVal ?? e.className}`;
    if (e.checkVisibility() && (box.right > wide + 1 || box.left < -1) && !scrolls(e.parentElement))
      bad.push(`${name} ${Math.round(box.left)}–${Math.round(box.right)}`);
  });
  return bad;
})()"""
