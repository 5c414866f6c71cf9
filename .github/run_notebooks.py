"""`make notebooks`: run notebooks in a Jupyter kernel and save what they show, outputs and figures, in place.

    run_notebooks.py [--flags "slow gpu"] [notebook ...]        all notebooks by default

The cells left out are those that nbdev_test leaves out: `#| eval: false`, and the flags of settings.ini's
tst_flags that --flags does not name. They keep the outputs they have. A notebook that fails stays as it was, unless --keep is given.
"""
import argparse, os, sys, time
from pathlib import Path

import nbformat
from execnb.nbio import NbCell
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives

SKIP = "skip-execution"  # the tag that nbclient heeds
WIDGET = "application/vnd.jupyter.widget-view+json"
PROFILER = "USDT:"  # begins what PyTorch's profiler says on stderr when it starts and stops
QUIET = ["--IPKernelApp.log_level=ERROR"]  # else every kernel warns that it talks unencrypted, to this same machine


def left_out(cell, flags):
    "Whether nbdev_test, told to skip cells with one of `flags`, would not run this cell"
    if cell.cell_type != "code" or not cell.source.strip(): return True
    directives = extract_directives(NbCell(0, dict(cell)), remove=False)
    return directives.get("eval:", [""])[0].lower() == "false" or bool(set(flags) & directives.keys())


def run(path, flags, keep=False):
    "Run the notebook at `path` in its own folder, and save it; where a cell fails, only if we are to `keep` it"
    nb = nbformat.read(path, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    tagged = [c for c in code if left_out(c, flags)]
    for c in tagged: c.metadata.setdefault("tags", []).append(SKIP)
    client = NotebookClient(nb, timeout=None, kernel_name="python3", store_widget_state=False, extra_arguments=QUIET,
                            resources={"metadata": {"path": str(path.parent)}})
    error = None
    try: client.execute()
    except CellExecutionError as e:
        if not keep: raise
        error = e
    for c in tagged: c.metadata.tags.remove(SKIP)
    for c in code:
        c.outputs = [o for o in c.outputs if WIDGET not in o.get("data", {})]          # progress bars, dead once saved
        c.outputs = [o for o in c.outputs if not o.get("text", "").startswith(PROFILER)]
    nb.metadata.pop("widgets", None)
    nbformat.write(nb, path)
    if error: raise error


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--flags", default="", help="flags of cells to run that are left out otherwise")
    parser.add_argument("--keep", action="store_true", help="save a notebook whose cell failed, too")
    args = parser.parse_args()
    flags = set(get_config().tst_flags.split()) - set(args.flags.split())
    # The kernels import the package from this tree, draw no progress bars as text, and do not fork tokenizers.
    os.environ.update(PYTHONPATH=str(get_config().config_path), TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    if "hub" not in args.flags.split(): os.environ["HF_HUB_OFFLINE"] = "1"  # as in `make test`: no cell may need the network
    failed = []
    for path in args.notebooks or sorted(nbglob(as_path=True)):
        start = time.time()
        try: run(path.absolute(), flags, args.keep)
        except (CellExecutionError, DeadKernelError) as e:
            failed.append(path)
            print(e, file=sys.stderr, flush=True)
        print(f"{'FAILED' if path in failed else 'saved':7} {path} ({time.time() - start:.0f} s)", flush=True)
    sys.exit(len(failed) > 0)


if __name__ == "__main__": main()
