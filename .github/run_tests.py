"""Everything `make test` checks; the last line counts what passed and what failed.

1. the modules in saealign/ are what nbdev exports from the notebooks,
2. nbdev_clean would change no notebook,
3. README.md is what nbs/index.ipynb says,
4. every notebook that `nbdev_test` would run, runs: one process each, so that no notebook lives on what
   another left behind, and one that crashes the interpreter is one failure among the others. They run side
   by side, each with its share of the cores: small models gain little from more than one.

1 and 2 work on a copy: the tree is never altered, and need not be a git checkout.
"""
import multiprocessing, os, shutil, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb

from make_readme import readme
from run_notebooks import left_out

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 45 * 60         # seconds for one notebook
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = min(4, CORES)   # notebooks at a time; each takes up to 3 GB of memory
# They start first, so that nothing long is left over at the end. The first makes the reference sets that others
# wait for; those that follow at once can do without.
LONGEST = ["02_scoring", "07_app", "how_tested", "reliability", "06_cli", "00_sae_mechanics", "acceptability_judge",
           "01_reference_set", "03_swap_clamp", "04_eval"]
LIBRARIES = ["torch", "sae_lens", "transformer_lens", "sentence_transformers", "datasets", "sklearn", "seaborn"]  # all but ours
PASSED, SKIPPED = 76, 77  # exit statuses of a notebook's process; not 0, which a cell can cause by leaving early


def nbdev(command, folder):
    "Run an nbdev command, as a user would, in `folder`"
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # with it set, nbdev exports nothing
    code = f"import nbdev.clean, nbdev.doclinks; nbdev.{command}.__wrapped__()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True)


def differing(a, b, pattern):
    "Files matching `pattern` whose bytes differ between folders `a` and `b`, or which only one of them has"
    names = {p.relative_to(top) for top in (a, b) for p in top.rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
    read = lambda p: p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if read(a / n) != read(b / n))


def check_copy(cfg):
    "Export and clean a copy of the project: yield each check's name, and what is wrong, if anything"
    lib, nbs = cfg.lib_path.relative_to(ROOT), cfg.nbs_path.relative_to(ROOT)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        # nbdev writes every module but __init__.py, in which it sets the version
        for source in [ROOT / "settings.ini", ROOT / lib / "__init__.py", *(ROOT / nbs).rglob("*.ipynb")]:
            copy = tmp / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.exists(): shutil.copy(source, copy)
        for name, command, top, pattern in [
            ("modules in sync with notebooks", "doclinks.nbdev_export", lib, "*.py"),
            ("notebooks clean", "clean.nbdev_clean", nbs, "*.ipynb"),
        ]:
            short = command.partition(".")[2]
            try:
                nbdev(command, tmp)
                changed = differing(ROOT / top, tmp / top, pattern)
                yield name, f": {short} would change {', '.join(changed)}" if changed else ""
            except subprocess.CalledProcessError:
                yield name, f": {short} failed"


def notebooks():
    "The notebooks that `nbdev_test` would run, the longest first: a file named .notest keeps its folder out"
    found = [p.absolute() for p in nbglob(as_path=True) if not (p.parent / ".notest").exists()]
    return sorted(found, key=lambda p: (LONGEST.index(p.stem) if p.stem in LONGEST else len(LONGEST), p))


def run_notebook(path, skip_flags):
    "In a process of its own: run the cells of one notebook, leave the answer in the exit status"
    if all(left_out(c, skip_flags) for c in read_nb(path).cells): sys.exit(SKIPPED)
    passed, seconds = test_nb(path, skip_flags=skip_flags, basepath=ROOT)
    sys.exit(SKIPPED if passed and not seconds else PASSED if passed else 1)  # no time: its front matter says skip_exec


def new_processes():
    "What starts a process for a notebook: where it can be, a fork of one that has imported other people's libraries"
    if "forkserver" not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context("spawn")
    fork = multiprocessing.get_context("forkserver")
    fork.set_forkserver_preload(LIBRARIES)
    return fork


def run_side_by_side(paths, skip_flags):
    "Run notebooks, `WORKERS` at a time; as they end, yield each one's path, exit status (None: stopped) and seconds"
    processes, waiting, running = new_processes(), list(paths), {}
    while waiting or running:
        while waiting and len(running) < WORKERS:
            path = waiting.pop(0)
            process = processes.Process(target=run_notebook, args=(path, skip_flags))
            process.start()
            running[process.sentinel] = path, process, time.time()
        ended = wait(running, timeout=1)
        for s, (path, process, start) in list(running.items()):
            seconds = time.time() - start
            if s not in ended and seconds < TIMEOUT: continue
            if s not in ended: process.kill()
            process.join()
            del running[s]
            yield path, process.exitcode if s in ended else None, seconds


def main():
    os.chdir(ROOT)
    # No test may depend on the network; tokenizers that fork would only warn.
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS=str(CORES // WORKERS))
    cfg, results = get_config(), []

    def report(name, result, hint=""):
        results.append(result)
        print(f"{result:7} {name}{hint}", flush=True)

    beside = ThreadPoolExecutor(1)                   # exports and cleans in processes of its own, while notebooks run
    checks = beside.submit(lambda: list(check_copy(cfg)))
    page = ROOT / "README.md"
    same = page.exists() and page.read_text(encoding="utf-8") == readme()
    report("README in sync with nbs/index.ipynb", "ok" if same else "FAILED", "" if same else ": run .github/make_readme.py")

    found = notebooks()
    if not found: report(cfg.nbs_path, "FAILED", ": no notebook found")
    for path, status, seconds in run_side_by_side(found, cfg.tst_flags.split()):
        result = {PASSED: "ok", SKIPPED: "skipped"}.get(status, "FAILED")
        report(f"{path.relative_to(ROOT)} ({seconds:.0f} s)", result, ": stopped, it took too long" if status is None else "")

    for name, wrong in checks.result(): report(name, "FAILED" if wrong else "ok", wrong)
    failed, skipped = results.count("FAILED"), results.count("skipped")
    print(f"{results.count('ok')} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    sys.exit(failed > 0)


if __name__ == "__main__": main()
