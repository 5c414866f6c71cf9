"""`make gpu`: what only a GPU can show, in a few minutes, without a network.

It proves, on the device against the CPU, that features, interventions, generation, reference pass
and scores are the same; and it measures what steering costs while decoding, as ratios within one
run. One step follows another; after each, its result is written to nbs/results/gpu.json, which
nbs/05_costs.ipynb shows. A step for which there is no time left is skipped, with a word.
`--tiny --device cpu` is the dry run of `make test`.

It needs PyTorch, transformers and safetensors. What else saealign imports and is not installed
(SAELens, datasets, fastcore …) is taken from the wheels in the folder that `--wheels` names.
"""
import argparse, atexit, contextlib, datetime, gc, importlib, importlib.metadata, json, os
import platform, shutil, statistics, sys, tempfile, time, traceback, warnings, zipfile
from functools import partial
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = "torch", "transformers", "safetensors", "sae_lens", "transformer_lens", "fastcore"
PLACE = "hook_resid_post"
PROMPT = "My heart is broken, so I should"
STEPS = {}                               # name -> (function, seconds that it may take)
NAMES = {                                # imported once wheels are in place
    "saealign.costs": "generation_bytes pass_bytes sae_bytes weight_bytes",
    "saealign.embedding": "embed",
    "saealign.files": "ASSETS",
    "saealign.hooks": "hooked",
    "saealign.interventions": "Intervention Watch",
    "saealign.language_models": "decoder_layers generate_ids lm_logits n_hooks",
    "saealign.pools": "bundled_prompts bundled_topic",
    "saealign.reference_set": "ReferenceSet",
    "saealign.sae_mechanics": "activate decode encode pre_activations random_sae SAEModel",
    "saealign.scoring": "TopicScores",
    "saealign.sparse": "parts_pay pre_activations_in_parts summed_on_device",
    "saealign.steered": "steer",
    "saealign.swap_clamp": "choose Clamp Reconstruct Swap TopicVector TopUp",
    "saealign.weight": "Weight",
}


def options():
    "What was asked for"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="where to run")
    parser.add_argument("--tiny", action="store_true", help="small shapes: that everything runs")
    parser.add_argument("--minutes", type=float, default=5.5, help="start no step that ends later")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what is not installed")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "results" / "gpu.json")
    return parser.parse_args()


def unpack_wheels(folder):
    "Put what wheels hold behind what is installed, which goes first"
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        sys.exit(f"There are no wheels in {folder}: fill it, `pip download -d`, or name none.")
    place = tempfile.mkdtemp(prefix="saealign-wheels-")
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive: archive.extractall(place)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    sys.path.append(place)


def import_names(wheels):
    "Import what steps use of saealign, which may need packages from wheels"
    sys.path.insert(0, str(ROOT))
    if wheels: unpack_wheels(wheels)
    try:
        for module, names in NAMES.items():
            found = importlib.import_module(module)
            globals().update({name: getattr(found, name) for name in names.split()})
    except ModuleNotFoundError as e:
        where = f"in {wheels}" if wheels else "in a folder of wheels: give one with --wheels"
        sys.exit(f"{e.name} is neither installed nor {where}.")


def step(seconds):
    "Register a step, which gives its numbers; `ok` among them says whether its goal was reached"
    def register(fn):
        STEPS[fn.__name__.replace("_", " ")] = fn, seconds
        return fn
    return register


class Bench:
    "The device, the shapes, and the small things that steps share"
    def __init__(self, device, tiny, ends=float("inf")):
        from transformers import Gemma2Config, GPT2Config, LlamaConfig
        self.ends = ends                              # start nothing that may not be done by then
        self.device, self.tiny = torch.device(device), tiny
        self.cuda = self.device.type == "cuda"
        self.batches = (1, 2) if tiny else (1, 8, 64)
        self.new_tokens = 5 if tiny else 12
        if tiny:
            small = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=16)
            self.gpt2 = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2)
            self.gemma, self.llama = Gemma2Config(**small), LlamaConfig(**small)
            self.layer, self.wide, self.scope = 1, 256, 128
        else:
            self.gpt2, self.gemma = GPT2Config(), Gemma2Config()
            self.llama = LlamaConfig(vocab_size=128_256, hidden_size=4096, num_hidden_layers=32,
                                     intermediate_size=14_336, num_attention_heads=32,
                                     num_key_value_heads=8)
            self.layer, self.wide, self.scope = 6, 32_768, 16_384

    def lm(self, config, dtype):
        "A language model of that shape, with random weights, made where it is to stay"
        from transformers import AutoModelForCausalLM
        torch.manual_seed(0)
        with self.device: lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return lm.eval().requires_grad_(False)

    def sae(self, config, kind, d_sae, layer):
        "An SAE for it; on numbers drawn at random, one JumpReLU feature in two hundred is on"
        kw = dict(k=8 if self.tiny else 32) if kind == "topk" else {}
        sae = random_sae(kind, config.hidden_size, d_sae, hook_name=f"blocks.{layer}.{PLACE}", **kw)
        sae.cfg.metadata.median_norm = config.hidden_size**.5       # or it is asked of the device
        if kind == "jumprelu": sae.threshold.fill_(2.5)
        return sae.to(self.device)

    def ids(self, config, batch, length=16):
        "Tokens drawn at random, none of them special"
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(10, config.vocab_size - 10, (batch, length), generator=g)
        return ids.to(self.device)

    def drawn(self, n):
        "Numbers between 0 and 1, always the same"
        return torch.rand(n, generator=torch.Generator().manual_seed(2))

    def left(self):
        "Seconds"
        return self.ends - time.perf_counter()

    def so_far(self, found):
        "What a step has found before it has ended; `main` says where it goes"

    def sync(self):
        "Wait until the device has done what it was asked"
        if self.cuda: torch.cuda.synchronize(self.device)

    def allocated(self):
        "Bytes of tensors on the device"
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0

    def free(self):
        "Bytes that are free on the device"
        return torch.cuda.mem_get_info(self.device)[0] if self.cuda else 2**33

    def peak(self, fn):
        "The most bytes of tensors on the device at a time; None where nobody counts"
        if not self.cuda:
            fn()
            return None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        fn()
        return torch.cuda.max_memory_allocated(self.device)

    def times(self, fns, lasting=4):
        "Seconds of functions that are run in turn, round by round; the first round is not counted"
        seconds, began = {name: [] for name in fns}, None
        while began is None or len(seconds[name]) < 3 or time.perf_counter() - began < lasting:
            for name, fn in fns.items():
                self.sync()
                start = time.perf_counter()
                fn()
                self.sync()
                seconds[name].append(time.perf_counter() - start)
            if began is None: began = time.perf_counter()
            if self.tiny: break
        return {name: s[-max(1, len(s) - 1):] for name, s in seconds.items()}

    def step_ratios(self, writers, lasting, base="unmodified"):
        """Of decode steps to the base's, which is run before and after every two; and its seconds

        A machine's pace changes within seconds, so each step is compared with the same step of two
        neighbours. The first round is not counted; every other goes through the ways backwards.
        """
        names = [name for name in writers if name != base]
        found, seconds, began = {name: [] for name in names}, [], None
        while began is None or time.perf_counter() - began < lasting or len(seconds) < 2:
            before, counted = self.steps(writers[base]), began is not None or self.tiny
            for two in zip(names[::2], names[1::2]):
                steps = {name: self.steps(writers[name]) for name in two}
                after = self.steps(writers[base])
                for name in two if counted else (): found[name] += over(steps[name], before, after)
                before = after
            names.reverse()
            if counted: seconds.append(before)
            if began is None: began = time.perf_counter()
            if self.tiny: break
        return found, seconds

    def steps(self, writer):
        "Seconds of each decode step of a generation, but the first"
        ticks = Ticks()
        writer(streamer=ticks)
        self.sync()
        return [b - a for a, b in zip(ticks.at[2:], ticks.at[3:])]      # prompt, first token, …


def over(steps, before, after):
    "Ratios to the mean of the same steps before and after"
    return [2 * a / (b + c) for a, b, c in zip(steps, before, after)]


class Ticks:
    "A streamer that notes when each token came"
    def __init__(self): self.at = []
    def put(self, value): self.at.append(time.perf_counter())
    def end(self): pass


def medians(seconds):
    "Median seconds of each function"
    return {name: statistics.median(s) for name, s in seconds.items()}


def ratios(seconds, base="unmodified"):
    "Of each function's seconds to those of one of them: the median over rounds"
    def ratio(times): return statistics.median(a / b for a, b in zip(times, seconds[base]))
    return {name: ratio(times) for name, times in seconds.items()}


def gap(a, b):
    "The largest difference, relative to the largest number"
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()


class Seen(Exception): "Raised where nothing deeper in the model is wanted"


def set_threshold(lm, sae, ids):
    "Have one feature in two hundred on where this model is, as in a JumpReLU SAE that was trained"
    def read(x, mask):
        pre_acts = encode(sae, x.float())[0].flatten()               # of every token and feature
        some = pre_acts[::pre_acts.numel() // 1_000_000 + 1]
        sae.threshold.fill_(torch.quantile(some, .995))
        raise Seen
    try:
        with torch.no_grad(), hooked(lm, {sae.cfg.metadata.hook_name: read}): lm(ids)
    except Seen: pass


def reads(lm, sae, ids, then):
    "A function that runs a model as far as the SAE, and hands on what is there"
    def read(x, mask):
        then(x.flatten(0, 1))                                            # [n_tokens, d_in]
        raise Seen
    def fn():
        try:
            with torch.no_grad(), hooked(lm, {sae.cfg.metadata.hook_name: read}): lm_logits(lm, ids)
        except Seen: pass
    return fn


def passes(lm, sae, ids, dtype=None):
    "A function that reads tokens as the reference pass does"
    prompt_of = torch.arange(len(ids), device=ids.device).repeat_interleave(ids.shape[1])
    def summed(x): summed_on_device(sae, x.to(dtype or x.dtype), prompt_of, len(ids))
    return reads(lm, sae, ids, summed)


def bare_hook(lm, layer, vector):
    "A hook as one writes it by hand: it adds a vector to what a block gives, at every token"
    def add(module, args, out):
        return (out[0] + vector, *out[1:]) if isinstance(out, tuple) else out + vector
    return decoder_layers(lm)[layer].register_forward_hook(add)


def writes(lm, sae, ids, way, new, **kwargs):
    "A function that continues tokens greedily; `way` None: without any hook; or it makes one"
    how = dict(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
               max_new_tokens=new, min_new_tokens=new) | kwargs
    def fn(**also):
        with torch.no_grad():
            if way is None: return lm.generate(**how, **also)
            if not isinstance(way, Intervention):
                handle = way()
                try: return lm.generate(**how, **also)
                finally: handle.remove()
            with steer(lm, way, sae): return lm.generate(**how, **also)
    return fn


class Letters:
    "A sentence embedder that counts letters, for want of another"
    def __repr__(self): return "Letters()"

    def encode(self, texts, **kwargs):
        rows = [[t.lower().count(chr(c)) for c in range(97, 123)] for t in texts]
        return torch.tensor(rows).float().numpy()


def small_topic(device, folder):
    "The bundled model, a reference set made with it, and a topic: on any device"
    model = SAEModel.from_pretrained("tiny", device=device)
    prompts = bundled_prompts(96).prompt.tolist()
    ref = ReferenceSet.build(model, prompts, embedder=Letters(), cache=folder, bf16=False)
    return model, ref, ref.score(bundled_topic("medical"), name="medical")


def made_up_topic(sae):
    "A topic with a made-up reference set behind it, as wide as the SAE"
    import pandas as pd, scipy.sparse as sp
    texts = [f"{a}{b} {c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrst"]        # 256
    rows = sp.random_array((len(texts), sae.cfg.d_sae), density=.15, format="csr", rng=0)
    name, table = sae.cfg.metadata.hook_name, pd.DataFrame(dict(prompt=texts))
    rows = rows.astype("float32")
    largest = rows.max(axis=0).toarray()
    stats = dict(n_prompts=(rows > 0).sum(0), max=largest, mean=largest / 2)
    ref = ReferenceSet(table, embed(texts, Letters()), {name: rows}, {name: stats},
                       embedder=Letters())
    return ref.score(texts[:8], name="made up")


def ways_of(topic):
    "The interventions that are tried"
    return {"SAE": Reconstruct(), "Swap": Swap(topic),
            "Swap, error kept": Swap(topic, keep_error=True),
            "TopUp": TopUp(topic), "Clamp": Clamp(topic), "Weight": Weight(topic),
            "Topic vector": TopicVector(topic)}


@step(20)
def features(bench):
    "Encode, choose, decode, for TopK and JumpReLU: on the device against the CPU, in float32"
    found, exact = {}, True
    for kind in "topk", "jumprelu":
        here = bench.sae(bench.gpt2, kind, bench.wide, bench.layer)
        home = bench.sae(bench.gpt2, kind, bench.wide, bench.layer).to("cpu")
        x = torch.randn(4, 16, bench.gpt2.hidden_size, generator=torch.Generator().manual_seed(1))
        pre, acts = encode(home, x)
        pre_here, _ = encode(here, x.to(bench.device))
        weighted = pre * bench.drawn(bench.wide)
        for k in None, 4, "l0":                            # from the same numbers, the same choice
            a = choose(home, weighted, acts, k)
            b = choose(here, weighted.to(bench.device), acts.to(bench.device), k)
            exact = exact and torch.equal(a, b.cpu())
        back = decode(here, acts.to(bench.device), x.to(bench.device))
        found[f"{kind}: pre-activations"] = gap(pre_here, pre)
        found[f"{kind}: decoded"] = gap(back, decode(home, acts, x))
    return found | dict(choices_equal=exact, ok=exact and max(found.values()) < 1e-4)


@step(40)
def interventions(bench):
    "The bundled model's reference set, scores and steered logits: on the device against the CPU"
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        home, ref_home, topic_home = small_topic("cpu", a)
        here, ref_here, topic_here = small_topic(bench.device, b)
        found = {}
        for h in home.saes:
            ours, theirs = (torch.as_tensor(r.summaries[h].toarray()) for r in (ref_here, ref_home))
            found[f"shares at {h}"] = gap(ours, theirs)
            ours, theirs = (torch.as_tensor(t.g[h]).nan_to_num() for t in (topic_here, topic_home))
            found[f"g at {h}"] = gap(ours, theirs)
        ids = home.to_tokens([PROMPT, "The doctor said"], "left")
        for name in ways_of(topic_home):
            logits = []
            for model, topic in (here, topic_here), (home, topic_home):
                tokens = {k: v.to(model.device) for k, v in ids.items()}
                way = ways_of(topic)[name]
                with torch.no_grad(), steer(model.lm, way, model.saes, model.tokenizer):
                    logits.append(model.lm(**tokens).logits[:, -1])
            found[f"logits with {name}"] = gap(*logits)
    return found | dict(ok=max(found.values()) < 1e-3)


@step(40)
def generation(bench):
    "Cache, batch, padding and seed: each must leave the text as it is"
    with tempfile.TemporaryDirectory() as folder:
        model, _, topic = small_topic(bench.device, folder)
        prompts, n = [PROMPT, "The doctor said that", "On Sunday"], 8 if bench.tiny else 24
        def texts(given=prompts, how=Swap(topic), **kw):
            return [g.text for g in model.generate(given, how, max_new_tokens=n, **kw)]
        greedy = texts(top_k=1)
        found = {"without a cache": texts(top_k=1, use_cache=False) == greedy,
                 "one prompt at a time": [texts([p], top_k=1)[0] for p in prompts] == greedy,
                 "an intervention for each row": texts(how=[Swap(topic)] * 3, top_k=1) == greedy,
                 "the same seed": texts(seed=3) == texts(seed=3),
                 "steered": greedy != texts(how=None, top_k=1),
                 "no hook is left": n_hooks(model.lm) == 0}
    return found | dict(ok=all(found.values()))


@step(20)
def bfloat16(bench):
    "A model in bfloat16, its SAE in float32: nine features in ten are those of float32"
    lm = bench.lm(bench.gpt2, torch.float32)
    sae = bench.sae(bench.gpt2, "topk", bench.wide, bench.layer)
    topic = TopicScores.from_scores(bench.drawn(bench.wide))
    ids, on, size = bench.ids(bench.gpt2, 4, 64), [], []
    for dtype in torch.float32, torch.bfloat16:
        lm, seen = lm.to(dtype), []
        def note(x, mask): seen.append(x)
        with torch.no_grad(), hooked(lm, {sae.cfg.metadata.hook_name: note}): lm(ids)
        edit = Swap(topic).run(sae, seen[0])
        on.append(edit.after != 0)
        size.append(edit.x.float())
    same = ((on[0] & on[1]).sum() / on[0].sum()).item()
    found = dict(same_features=same, dtype_kept=str(edit.x.dtype), difference=gap(size[1], size[0]))
    return found | dict(ok=same > .9 and found["dtype_kept"] == "torch.bfloat16")


@step(15)
def two_models(bench):
    "Two models steered at once on one device do not mix, and nothing of them is left there"
    before = bench.allocated()
    lms = [bench.lm(bench.gpt2, torch.float32) for _ in range(2)]
    saes = [bench.sae(bench.gpt2, "topk", bench.wide, bench.layer) for _ in lms]
    topics = [TopicScores.from_scores(torch.rand(bench.wide)) for _ in lms]
    ids = bench.ids(bench.gpt2, 2)
    with torch.no_grad():
        alone = []
        for lm, sae, topic in zip(lms, saes, topics):
            with steer(lm, Swap(topic), sae): alone.append(lm(ids).logits)
        first, second = (Swap(t) for t in topics)
        with steer(lms[0], first, saes[0]), steer(lms[1], second, saes[1]):
            both = [lm(ids).logits for lm in lms]
    same = all(torch.equal(a, b) for a, b in zip(alone, both))
    differ = not torch.equal(alone[0], alone[1])
    del lms, saes, alone, both, lm, sae, ids, first, second
    left = bench.allocated() - before
    return dict(same=same, differ=differ, bytes_left=left, ok=same and differ and left <= 2**20)


class Waits(TorchDispatchMode):
    "Count the operations for which the processor has to wait until a GPU has an answer"
    NAMES = "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.n += name in self.NAMES or by_mask
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def syncs(bench):
    "What PyTorch says of every wait for a GPU"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if bench.cuda: torch.cuda.set_sync_debug_mode("warn")
        try: yield said
        finally:
            if bench.cuda: torch.cuda.set_sync_debug_mode("default")


@step(15)
def waiting(bench):
    "How often a decode step waits for an answer of the device, beyond the unmodified model"
    found = {}
    for kind in "topk", "jumprelu":
        lm = bench.lm(bench.gpt2, torch.float32)
        sae = bench.sae(bench.gpt2, kind, bench.wide, bench.layer)
        topic, ids = made_up_topic(sae), bench.ids(bench.gpt2, 2)
        ways = {"unmodified": None, "hooks alone": Watch()} | ways_of(topic)
        ways |= {"Clamp, own value": Clamp(topic, value="token"), "rows": Swap([topic, None])}
        for name, way in ways.items():
            with torch.no_grad(), contextlib.nullcontext() if way is None else steer(lm, way, sae):
                past = lm(ids, use_cache=True).past_key_values
                lm(ids[:, -1:], past_key_values=past)               # what is worked out once, is
                with Waits() as waits, syncs(bench) as said: lm(ids[:, -1:], past_key_values=past)
            found[f"{kind}, {name}"] = waits.n
            found[f"{kind}, {name}, said by CUDA"] = len(said)
        for also in "", ", said by CUDA":
            own = found.pop(f"{kind}, unmodified{also}")
            for name in ways.keys() - {"unmodified"}: found[f"{kind}, {name}{also}"] -= own
    return found | dict(ok=max(found.values()) == 0 if bench.cuda else None)


def memory_of(bench, config, kind, d_sae, layer):
    "Peak memory of a reference pass and of a generation, found and predicted"
    lm_bytes = weight_bytes(config)
    if lm_bytes + sae_bytes(config.hidden_size, d_sae) > .8 * bench.free():
        return dict(skipped=f"needs {lm_bytes / 1e9:.0f} GB")
    lm, sae = bench.lm(config, torch.bfloat16), bench.sae(config, kind, d_sae, layer)
    topic = TopicScores.from_scores(torch.rand(d_sae))
    n_texts, length, new = (2, 8, 4) if bench.tiny else (64, 128, 32)
    ids = bench.ids(config, n_texts, length)
    rows = min(8, n_texts)
    wanted = dict(a_pass=pass_bytes(config, kind, d_sae, n_texts * length),
                  a_generation=generation_bytes(config, kind, d_sae, rows, length, new))
    generation = writes(lm, sae, ids[:rows], Swap(topic), new)
    found = dict(a_pass=bench.peak(passes(lm, sae, ids)), a_generation=bench.peak(generation))
    out = {}
    for what, predicted in wanted.items():
        out[f"{what}_predicted_GB"] = predicted / 1e9
        if found[what] is not None: out[f"{what}_GB"] = found[what] / 1e9
    return out


@step(60)
def memory(bench):
    "Peak memory, gemma-2-2b with 16k features, llama-3.1-8b with 32k: within 15 % of 05's sums"
    middle = bench.gemma.num_hidden_layers // 2, bench.llama.num_hidden_layers // 2
    found = {"gemma-2-2b, 16k": memory_of(bench, bench.gemma, "jumprelu", bench.scope, middle[0]),
             "llama-3.1-8b, 32k": memory_of(bench, bench.llama, "topk", bench.wide, middle[1])}
    off = [abs(row[f"{w}_GB"] / row[f"{w}_predicted_GB"] - 1) for row in found.values()
           for w in ("a_pass", "a_generation") if f"{w}_GB" in row]
    return found | dict(ok=max(off) < .15 if off else None)


def steps_row(bench, writers, lasting):
    "Median ratios of decode steps, and what they are ratios to"
    found, seconds = bench.step_ratios(writers, lasting)
    row = {name: statistics.median(steps) for name, steps in found.items()}
    row["topic vector / bare hook"] = row["topic vector"] / row["bare hook"]
    ms = 1e3 * statistics.median(step for steps in seconds for step in steps)
    return row | {"ms per step, unmodified": ms, "rounds": len(seconds)}


def decoding(bench, config, kind, d_sae, layer, dtype, limit, lasting):
    "Time of a decode step under each way to steer, as a ratio of the unmodified model's"
    lm, sae = bench.lm(config, dtype), bench.sae(config, kind, d_sae, layer)
    if kind == "jumprelu": set_threshold(lm, sae, bench.ids(config, bench.batches[0]))
    topic = made_up_topic(sae)
    vector = torch.randn(config.hidden_size, device=bench.device, dtype=dtype)
    ways = {"unmodified": None, "bare hook": lambda: bare_hook(lm, layer, vector),
            "hooks alone": Watch(), "Swap": Swap(topic), "TopUp": TopUp(topic),
            "topic vector": TopicVector(topic), "unmodified, again": None}
    several = {"Swap, a topic for each row": Swap([topic, made_up_topic(sae)]),
               "unmodified, once more": None}
    settings = [("dynamic", batch) for batch in bench.batches] + [("static", bench.batches[0])]
    found = {}
    for cache, batch in settings:
        if bench.left() < 2 * lasting: continue
        ids = bench.ids(config, batch)
        static = dict(cache_implementation="static", disable_compile=True)
        kept = static if cache == "static" else {}
        now = ways | (several if batch == bench.batches[1] else {})
        writers = {name: writes(lm, sae, ids, way, bench.new_tokens, **kept)
                   for name, way in now.items()}
        found[f"{cache} cache, batch {batch}"] = steps_row(bench, writers, lasting)
        bench.so_far(found)
    worst = max((max(row[w] for w in ("Swap", "TopUp", "topic vector")) for row in found.values()),
                default=0.)
    reached = worst <= limit and (len(found) == len(settings) or None)    # None: some are missing
    return found | dict(worst=worst, wanted=limit, ok=None if bench.tiny else reached)


@step(60)
def decoding_gpt2(bench):
    "Steering while decoding, GPT-2 small's shape, 32k TopK features: at most 1.10 ×"
    return decoding(bench, bench.gpt2, "topk", bench.wide, bench.layer, torch.float32, 1.10, 11)


def kernels(bench, fn):
    "Milliseconds of the device by kind of kernel: products, and everything else"
    if not bench.cuda: return {}
    fn()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        fn()
        bench.sync()
    found = dict(ms_in_products=0., ms_in_other_kernels=0.)
    for event in profile.key_averages():
        product = any(w in event.key.lower() for w in ("gemm", "nvjet", "cutlass", "xmma"))
        found["ms_in_products" if product else "ms_in_other_kernels"] += (
            getattr(event, "self_device_time_total", 0.) / 1e3)
    return found


def parts_against_float32(lm, sae, ids):
    "What products in bfloat16 change of an encoder in float32"
    found = {}
    def compare(x):
        exact, parts = pre_activations(sae, x), pre_activations_in_parts(sae, x)
        on, too = activate(sae, exact) != 0, activate(sae, parts) != 0
        found.update(in_parts=parts_pay(sae, x), error_in_parts=gap(parts, exact),
                     features_that_differ=((on != too).sum() / on.sum()).item())
    reads(lm, sae, ids, compare)()
    return found


@step(30)
def reference_pass(bench):
    "Arithmetic of gemma's reference pass, against the device's matrix rate in bfloat16"
    n = 256 if bench.tiny else 8192
    a = torch.randn(n, n, device=bench.device, dtype=torch.bfloat16)
    rate = 2 * n**3 / medians(bench.times({"product": lambda: a @ a}, 1))["product"]
    layer = bench.gemma.num_hidden_layers // 2
    lm = bench.lm(bench.gemma, torch.bfloat16)
    sae = bench.sae(bench.gemma, "jumprelu", bench.scope, layer)
    ids = bench.ids(bench.gemma, 2 if bench.tiny else 128, 8 if bench.tiny else 128)
    set_threshold(lm, sae, ids[:2])
    whole, in_float32 = passes(lm, sae, ids), passes(lm, sae, ids, torch.float32)
    alone = reads(lm, sae, ids, lambda x: None)
    fns = {"whole": whole, "in float32": in_float32, "language model": alone}
    seconds = medians(bench.times(fns, 3))
    per_layer = sum(p.numel() for p in decoder_layers(lm)[0].parameters())
    of_model = 2 * ids.numel() * (layer + 1) * per_layer
    work = of_model + 2 * ids.numel() * sae.W_enc.numel()
    share = work / seconds["whole"] / rate
    return dict(tokens_per_second=ids.numel() / seconds["whole"], matrix_rate_TFLOPS=rate / 1e12,
                share=share, share_language_model=of_model / seconds["language model"] / rate,
                share_in_float32=work / seconds["in float32"] / rate,
                **parts_against_float32(lm, sae, ids[:8]), **kernels(bench, whole),
                wanted=.5, ok=None if bench.tiny else share >= .5)


@step(40)
def other_tools(bench):
    "Swap written with SAELens on a TransformerBridge, against ours"
    try:
        from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
        from transformers import AutoTokenizer
    except ImportError as e: return dict(skipped=f"{e.name} is not installed", ok=None)
    lm = bench.lm(bench.gpt2, torch.float32)
    sae = bench.sae(bench.gpt2, "topk", bench.wide, bench.layer)
    drawn = bench.drawn(bench.wide).to(bench.device)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tiny")
    bridge = SAETransformerBridge.boot_transformers(
        "gpt2", hf_model=bench.lm(bench.gpt2, torch.float32), tokenizer=tokenizer,
        device=str(bench.device))
    bridge.add_sae(bench.sae(bench.gpt2, "topk", bench.wide, bench.layer))
    gammas = next(n for n, _ in bridge.named_modules() if n.endswith(".hook_sae_acts_pre"))
    seen = {}
    def note(pre_acts, hook): seen["pre_acts"] = pre_acts
    def swap(feature_acts, hook):
        return (activate(sae, seen["pre_acts"] * drawn) != 0) * seen["pre_acts"]
    ids = bench.ids(bench.gpt2, 1)
    tokens, n = dict(input_ids=ids, attention_mask=torch.ones_like(ids)), bench.new_tokens
    def theirs():
        hooks = [(gammas, note), (gammas.replace("acts_pre", "acts_post"), swap)]
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):
            return generate_ids(bridge, tokens, n, do_sample=False)
    def ours():
        topic = TopicScores.from_scores(drawn.cpu())
        with torch.no_grad(), steer(lm, Swap(topic), sae, sinks=None):
            return generate_ids(lm, tokens, n, do_sample=False)
    seconds = bench.times({"theirs": theirs, "ours": ours})
    times = ratios(seconds, "ours")["theirs"]
    same = torch.equal(theirs(), ours())
    return dict(times_theirs_to_ours=times, same_text=same, ok=same)


@step(60)
def decoding_gemma(bench):
    "The same for gemma-2-2b's shape in bfloat16, 16k JumpReLU features: at most 1.03 ×"
    layer = bench.gemma.num_hidden_layers // 2
    return decoding(bench, bench.gemma, "jumprelu", bench.scope, layer, torch.bfloat16, 1.03, 17)


def facts(bench, args):
    "What the numbers belong to"
    versions = {}
    for name in PACKAGES:
        try: versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: versions[name] = "from a wheel"
    device = torch.cuda.get_device_name(bench.device) if bench.cuda else platform.machine()
    return dict(device=device, kind=bench.device.type, python=platform.python_version(),
                versions=versions, cuda=torch.version.cuda, tiny=args.tiny,
                day=datetime.date.today().isoformat(), steps={})


def run_step(fn, bench):
    "Its numbers, or what went wrong"
    start = time.perf_counter()
    try: found = fn(bench)
    except Exception as e:
        traceback.print_exc()
        found = dict(ok=False, error=f"{type(e).__name__}: {e}"[:500])
    gc.collect()
    if bench.cuda: torch.cuda.empty_cache()
    return found | dict(seconds=round(time.perf_counter() - start, 1))


def main():
    start, args = time.perf_counter(), options()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    import_names(args.wheels)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here. Dry run: python .github/gpu.py --tiny --device cpu")
    bench = Bench(args.device, args.tiny, float("inf") if args.tiny else start + 60 * args.minutes)
    result = facts(bench, args)
    def write(name, fn, found):
        result["steps"][name] = dict(what=fn.__doc__, seconds=0, ok=None) | found
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, (fn, seconds) in STEPS.items():
        bench.so_far = partial(write, name, fn)
        if bench.left() >= seconds: found = run_step(fn, bench)
        else: found = dict(skipped="no time was left")
        write(name, fn, found)
        found = result["steps"][name]
        unjudged = "skipped" if "skipped" in found else "measured"
        word = {True: "ok", False: "FAILED", None: unjudged}[found["ok"]]
        print(f"{word:8} {name} ({found['seconds']} s)", flush=True)
    sys.exit(any(s["ok"] is False for s in result["steps"].values()))


if __name__ == "__main__": main()
