"""`make bench`: run every timing of nbs/05_costs.ipynb, the slow ones too, save the notebook, and print what it found."""
import subprocess, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "05_costs.ipynb"


def main():
    run = [sys.executable, ROOT / ".github" / "run_notebooks.py", "--flags", "slow", NOTEBOOK]
    if subprocess.run(run, cwd=ROOT).returncode: sys.exit(1)
    outputs = [o for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    print(*(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"), sep="")


if __name__ == "__main__": main()
