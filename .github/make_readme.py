"""README.md from nbs/index.ipynb, with the outputs saved there; nbdev's own command for this needs Quarto.

    make_readme.py [file]        README.md by default
"""
import re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
HERE = r"\]\((?=images/|[\w/]+\.ipynb)"  # how a link to a picture or a notebook beside the index begins


def readme():
    "The text of README.md"
    nb = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    nb.metadata["language_info"] = {"name": "python"}  # nbdev_clean drops it; code blocks want a language
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*hide", c.source)]
    for c in nb.cells:
        if c.cell_type != "code": continue
        c.outputs = [o for o in c.outputs if o.output_type != "stream" or o.name == "stdout"]
        for o in c.outputs: o.get("data", {}).pop("text/html", None)  # tables as plain text: they read well everywhere
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(HERE, "](nbs/", text)
    head = "<!-- Made from nbs/index.ipynb by .github/make_readme.py: edit the notebook. -->\n\n"
    return head + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


if __name__ == "__main__": Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "README.md").write_text(readme(), encoding="utf-8")
