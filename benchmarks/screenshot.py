"""A picture of a page, such as the one in the README.

    python -m benchmarks.screenshot runs/quickstart docs/report.png [--width 1100] [--height 1500] [--dark]

PAGE is a run folder (its report.html is written anew), or any HTML file. Needs a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.chromium import BrowserError, Chromium
from mathrl.errors import UserError
from mathrl.report.run_page import write_report


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, help="run folder or HTML file")
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--width", type=int, default=1100, help="of the window, CSS pixels")
    parser.add_argument("--height", type=int, default=1500, help="cut below; 0: the whole page")
    parser.add_argument("--dark", action="store_true", help="as a reader with a dark theme sees it")
    options = parser.parse_args()
    try:
        page = write_report(options.page) if options.page.is_dir() else options.page
        if not page.is_file():
            raise UserError(f"there is no {page}")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with Chromium() as browser:
            opened = browser.open(page, width=options.width, dark=options.dark)
            opened.screenshot(options.out, height=options.height)
    except (UserError, BrowserError) as error:
        sys.exit(f"screenshot: {error}")


if __name__ == "__main__":
    main()
