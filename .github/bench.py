"""`make bench`: run every timing of nbs/05_costs.ipynb, the slow ones too, save the notebook, and print what it found.

Where something that has to be reached is not, that is printed and saved as well, and the exit status is 1.
"""
import subprocess, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "05_costs.ipynb"


def main():
    run = [sys.executable, ROOT / ".github" / "run_notebooks.py", "--flags", "slow", "--keep", NOTEBOOK]
    status = subprocess.run(run, cwd=ROOT).returncode
    outputs = [o for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    print(*(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"), sep="")
    sys.exit(status)


if __name__ == "__main__": main()
