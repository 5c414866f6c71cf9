"""The install line of every notebook's Colab cell, with the address that settings.ini names.

    colab_cells.py [notebook ...]        all notebooks under nbs by default
"""
import re, sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALL = re.compile(r"install -q '?saealign(\[[^\]]*\])?(?: @ git\+[^'\"\\\s]*)?'?(?=[\s\"\\])")


def address():
    "Where the source is: `git_url` in settings.ini"
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]["git_url"]


def with_address(text, url):
    "A notebook's text, installing from `url`"
    return INSTALL.sub(lambda found: f"install -q 'saealign{found[1] or ''} @ git+{url}'", text)


def main(paths):
    "Rewrite the notebooks whose line is another"
    url = address()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        new = with_address(text, url)
        if new != text: path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main([Path(p) for p in sys.argv[1:]] or sorted((ROOT / "nbs").rglob("*.ipynb")))
