"""Write the tables of figures from the JSON in results/: README's six, docs/benchmarks.md, and the guide's.

In README all figures run in one direction: times faster than the peer, above 1 ours is faster, losses included.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def reading(f: dict[str, Any]) -> str:
    return f"reading a layer at a quarter of the depth, against a full forward | **{f['ratio']:.2f}x** the time"


def gradient(f: dict[str, Any]) -> str:
    ratios = " / ".join(f"{f[k]['ratio']:.2f}x" for k in ("batch_64", "batch_1"))
    return f"`gradient` against captum's Saliency, same maps to 1e-6 (64 images / 1 image) | **{ratios}** the time"


def callback(f: dict[str, Any]) -> str:
    share = f"**{f['share_of_epoch']:.1%}** of the epoch"
    return f"`ConfusedLogits`, a confused input at every look, drawing included | {share}"


def class_images(f: dict[str, Any]) -> str:
    def said(name: str, recipe: str) -> str:
        rows = f[name][recipe]
        named = f"{sum(r['named'] for r in rows)} of {10 * len(rows)}"
        return f"{named}, mean p {sum(r['p'] for r in rows) / len(rows):.2f}"

    seeds = len(f["digits"]["robust"])
    cells = [f"{n}: **{said(n, 'robust')}** (plain ascent: {said(n, 'noise')})" for n in ("mnist", "digits")]
    return f"class images of {seeds} seeds named by a robust model that took no part | {'; '.join(cells)}"


def channels(f: dict[str, Any]) -> str:
    def said(name: str) -> str:
        drawn, control = f[name]["drawn"], f[name]["control"]
        return f"{name}: **{drawn['above_best_real']:.0%}** (raw ascent: {control['above_best_real']:.0%})"

    cells = [said(name) for name in ("mnist-cnn relu1", "mnist-cnn relu2", "cifar-resnet20 layer3.1")]
    what = "drawings that, turned, zoomed and shifted anew, excite their channel more than the best real image does"
    return f"{what} | {'; '.join(cells)}"


def inversion(f: dict[str, Any]) -> str:
    rows = f["mnist_cnn"]
    cells = [
        f"{a}: {max(rows[a]['error']):.1g}, SSIM **{min(rows[a]['ssim']):.2f}**" for a in ("conv1", "conv2", "fc1")
    ]
    return f"inversion of 20 MNIST images in {f['steps']} steps, worst of 3 seeds: feature error | {'; '.join(cells)}"


def top_examples(f: dict[str, Any]) -> str:
    what = f"top examples and statistics of every unit of three layers, one pass over {f['images']:,} images"
    return f"{what} | **{f['ratio']:.2f}** of a bare forward pass's speed"


def depth(f: dict[str, Any]) -> str:
    plain, last = (f[k]["ratio"] for k in ("loop", "loop_channels_last"))
    what = "a step on a channel of VGG-16's 4th layer, against a step on a logit (channels_last)"
    return f"{what} | **{plain:.2f}x** ({last:.2f}x)"


def tsne(f: dict[str, Any]) -> str:
    right = f"10 nearest neighbors agree for {f['accuracy_last_hidden']:.1%} (raw pixels: {f['accuracy_pixels']:.1%})"
    return f"t-SNE map of 10,000 MNIST images, against openTSNE itself | **{f['ratio']:.2f}x** the time; {right}"


def map(f: dict[str, Any]) -> str:
    images, words = (
        [d["gap_most"] for d in g.values() if isinstance(d, dict) and "gap_most" in d] for g in (f, f["words"])
    )
    return (
        "interactive map of 10,000 images, and of 100,000 words: longest frame while panning and zooming | "
        f"**{max(images):.0f} ms** and **{max(words):.0f} ms**"
    )


def occlusion(f: dict[str, Any]) -> str:
    names = [name for name in ("vgg16", "resnet18", "mnist-cnn") if name in f]
    cells = [f"{name}: **{f[name]['times_faster']:.1f}x**" for name in names]
    memory = ", ".join(f"{f[name]['memory_ratio']:.2f}" for name in names)
    what = "occlusion by incremental inference against captum's at its best batch size, same drops: times faster"
    return f"{what} | {'; '.join(cells)} (peak memory {memory} of captum's)"


def integrated_gradients(f: dict[str, Any]) -> str:
    own = f["mnist-cnn"]
    cells = [f"{t[4:]}: **{own[t]['calls_ratio']:.2f}x** the calls" for t in ("tol_0.05", "tol_0.01", "tol_0.005")]
    what = "integrated gradients of 100 digits, all under a completeness error, against captum's least n_steps"
    return f"{what} | {'; '.join(cells)}"


def lime(f: dict[str, Any]) -> str:
    return _steady(f["digits"], "LIME", ("lime", "captum"))


def shap(f: dict[str, Any]) -> str:
    return _steady(f, "KernelSHAP", ("captum",))


def _steady(f: dict[str, Any], name: str, peers: tuple[str, ...]) -> str:
    ours = f["runs_ours"]["hiding"]
    cells = []
    for peer in peers:
        runs = f[f"runs_{peer}"]["hiding"]
        least = max(int(n) for n in f[f"runs_{peer}"]["curve"])
        cells.append(f"{peer}: {f'**{runs / ours:.1f}x**' if runs else f'more than **{least / ours:.1f}x**'} the runs")
    what = f"{name} until seeds agree (rank correlation .9 of superpixels): runs of the model, against our {ours:.0f}"
    return f"{what} | {'; '.join(cells)}"


def smoothgrad(f: dict[str, Any]) -> str:
    many, parts = f["batch_32"]["ratio"], f["batch_32_captum_in_parts"]["ratio"]
    what = "SmoothGrad of 50 samples, 32 images, against captum's NoiseTunnel (its samples in parts of five)"
    return f"{what} | **{many:.2f}x** ({parts:.2f}x) the time"


def grad_cam(f: dict[str, Any]) -> str:
    cells = [f"{model}: {f[f'{key}_batch_64']['ratio']:.2f}x / {f[f'{key}_batch_1']['ratio']:.2f}x"
             for model, key in (("mnist-cnn", "mnist_cnn"), ("resnet20", "resnet20"))]  # fmt: skip
    return f"Grad-CAM against captum's, same maps (64 images / 1 image) | {'; '.join(cells)} the time"


def robust(f: dict[str, Any]) -> str:
    stages = f["autoattack"]
    last = list(stages)[-1]
    found, low, high = stages[last]["share"], stages[last]["low"], stages[last]["high"]
    alone = f"; Square alone {f['square alone']['share']:.2%}" if "square alone" in f else ""
    what = f"`mnist-robust` under full AutoAttack, L-inf 0.3, all {f['clean']['n']:,} test images"
    return f"{what} | **{found:.2%}** ({low:.1%} to {high:.1%}); clean {f['clean']['share']:.2%}{alone}"


def pgd(f: dict[str, Any]) -> str:
    def said(g: dict[str, Any]) -> str:
        return f"**{g['dropping_times_faster']:.1f}x** ({g['keep_going_times_faster']:.1f}x)"

    cells = [f"{name}: {said(f[name])}" for name in ("mnist-cnn", "mnist-robust", "mnist-judge") if name in f]
    what = "PGD-40 against foolbox's, 500 images, as strong: times faster (nothing dropped)"
    return f"{what} | {'; '.join(cells)}"


def minimal(f: dict[str, Any]) -> str:
    def said(name: str, g: dict[str, Any]) -> str:
        both = f"{g['ours']['median']:.2f} against {g['foolbox']['median']:.2f}"
        return f"{name}: **{1 / g['ratio']:.1f}x**, median {both}"

    cells = [said("DeepFool L2", f["deepfool"]["l2"]), said("Carlini-Wagner", f["carlini_wagner"])]
    return f"least changes that fool mnist-cnn, against foolbox's: times faster, distance | {'; '.join(cells)}"


def fast_minimal(f: dict[str, Any]) -> str:
    def cell(name: str, of: dict[str, Any]) -> str:
        slow = of["carlini_wagner"]
        medians = ", ".join(f"{k.upper()} {of[k]['median']:.2f}" for k in ("ddn", "fmn"))
        times = " / ".join(f"**{slow['cpu_s'] / of[k]['cpu_s']:.1f}x**" for k in ("ddn", "fmn"))
        return f"{name}: {medians} (Carlini-Wagner {slow['median']:.2f}), {times} faster"

    cells = [cell(name, g["l2"]) for name, g in f["models"].items()]
    return f"DDN and FMN, the fast minimal attacks, against Carlini-Wagner: median L2, CPU time | {'; '.join(cells)}"


def eight_bits(f: dict[str, Any]) -> str:
    def told(name: str, g: dict[str, Any]) -> str:
        survive = f"**{g['files_survive']:.1%}** (rounded: {g['rounded_survive']:.1%})"
        return f"{name}: {survive}, {g['files_over_float']:.2f}x as far"

    cells = [told("DeepFool", f["deepfool"]), told("Carlini-Wagner", f["carlini_wagner"])]
    return f"adversarial images of ResNet-20 that still fool as 8-bit PNG files, `bits=8` | {'; '.join(cells)}"


def patch(f: dict[str, Any]) -> str:
    cells = [f"{name}: **{w['got']:.2f}** (wanted {w['wanted']:.2f})" for name, w in f["wanted"].items()]
    return f"patches on held-out images, anywhere in the picture: share taken for the target | {'; '.join(cells)}"


def lbfgs(f: dict[str, Any]) -> str:
    cells = [f"{name}: **{g['to_a_class']['distortion_mean']:.3f}**" for name, g in f["models"].items()]
    return f"L-BFGS distortion towards a class, as Szegedy et al. measure it | {'; '.join(cells)}"


def ablation(f: dict[str, Any]) -> str:
    names = [name for name in f if name.startswith("layer")]
    cells = [f"{n}: **{f[n]['ratio']:.2f}x** ({f[n]['ours_forwards'] / f[n]['whole_forwards']:.2f}x)" for n in names]
    what = "silencing 64 channels of ResNet-56 on 16 images, against whole forwards: CPU time (FLOPs)"
    return f"{what} | {'; '.join(cells)}"


ROWS = (
    reading, gradient, callback, class_images, channels, inversion, top_examples, depth, tsne, map,
    occlusion, integrated_gradients, lime, shap, smoothgrad, grad_cam,
    robust, pgd, minimal, fast_minimal, eight_bits, patch, lbfgs, ablation,
)  # fmt: skip

# -- README: times faster than the peer --------------------------------------------------------------------------------

Cells = list[tuple[str, str, float]]  # (what, against which peer, times faster)


def _headlines(read: Callable[[str], dict[str, Any]]) -> Cells:
    occlusion_f, minimal_f, lime_f = (read(n) for n in ("occlusion", "minimal", "lime"))
    tcav_f = read("concepts_tcav_captum")["same_work"]
    cells = [
        ("occlusion of VGG-16, same drops", "captum, at its best batch size", occlusion_f["vgg16"]["times_faster"]),
        ("DeepFool, same images, smaller distances", "foolbox", 1 / minimal_f["deepfool"]["l2"]["ratio"]),
        ("LIME until seeds agree, in model runs", "captum", _runs_ratio(lime_f["digits"], "captum")),
        ("TCAV of 10 concepts in 3 layers, same signs", "captum", 1 / tcav_f["ratio"]),
        ("PGD-40 of a robust model, as strong", "foolbox", read("pgd")["mnist-robust"]["dropping_times_faster"]),
        ("`gradient` of one image, same map", "captum", 1 / read("gradient")["batch_1"]["ratio"]),
    ]
    return sorted(cells, key=lambda cell: -cell[2])


def _runs_ratio(f: dict[str, Any], peer: str) -> float:
    return float(f[f"runs_{peer}"]["hiding"] / f["runs_ours"]["hiding"])


def headline_table(read: Callable[[str], dict[str, Any]]) -> list[str]:
    """Six figures, the fastest first."""
    rows = [f"| {what} | {peer} | **{faster:.2g}x** |" for what, peer, faster in _headlines(read)]
    return ["| what | against | times faster |", "|---|---|---|", *rows]


# -- docs/benchmarks.md ------------------------------------------------------------------------------------------------

BENCHMARKS = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

What was measured, when, and at which commit; `make bench` measures it again on your machine. Ours and the peer run in
turn in one process, after a check that both give the same answer; ratios are medians of pairs. This page is made from
the JSON in `benchmarks/results/` by `benchmarks/table.py`.

| what | measured | date | commit |
|---|---|---|---|"""


def leaderboard() -> str:
    """Every benchmark with its figure, date and commit."""
    lines = [INTRODUCTION]
    for row in ROWS:
        path = HERE / "results" / f"{row.__name__}.json"
        if path.exists():
            lines.append(f"| {row(json.loads(path.read_text()))} | {' | '.join(_last_change(path))} |")
    return "\n".join(lines) + "\n"


def _last_change(path: Path) -> list[str]:
    """The date and the commit at which a result was written."""
    command = ["git", "log", "--abbrev=7", "-1", "--format=%cs %h", "--", str(path)]
    log = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE).stdout.split()
    return log if len(log) == 2 else ["-", "-"]


# -- how alike maps are when layers are drawn anew ---------------------------------------------------------------------

GUIDE = HERE.parent / "docs" / "guide.md"
ANEW = "<!-- randomization:begin -->", "<!-- randomization:end -->"
KINDS = ("signed", "absolute", "ssim", "hog")


def randomization(f: dict[str, Any]) -> list[str]:
    """A row a method: signed and absolute rank correlation, SSIM and HOG with the trained model's maps, by layer."""
    layers = list(f["methods"]["gradient"]["cascading"])
    lines = [f"| method | {' | '.join(f'down to {name}' for name in layers)} |", "|---" * (1 + len(layers)) + "|"]
    for name, found in f["methods"].items():
        cells = [" / ".join(f"{found['cascading'][layer][kind]:.2f}" for kind in KINDS) for layer in layers]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


# -- defenses side by side ---------------------------------------------------------------------------------------------

SIDE_BY_SIDE = "<!-- defenses:begin -->", "<!-- defenses:end -->"


def defenses(f: dict[str, Any]) -> list[str]:
    """A row a defense: clean accuracy, what stands under each attack, and what the training took."""
    plain = f["rows"]["none"]["cpu_seconds"]
    attacks = list(f["rows"]["none"]["robust"])
    images = f"the first {f['images']:,} test images"
    head = f"One small model on MNIST, {f['epochs']} epochs each; L-inf {f['eps']:g}, {images}."
    lines = [head, "", f"| defense | clean | {' | '.join(attacks)} | training |", "|---" * (3 + len(attacks)) + "|"]
    for name, row in f["rows"].items():
        cells = [f"{row['robust'][a]['share']:.1%}" for a in attacks]
        took = f"{row['cpu_seconds']:.0f} s of CPU, {row['cpu_seconds'] / plain:.1f}x"
        lines.append(f"| {name} | {row['clean']:.2%} | {' | '.join(cells)} | {took} |")
    return lines


IN_README = "<!-- verdicts:begin -->", "<!-- verdicts:end -->"
VERDICTS, MEASURED = HERE.parent / "docs" / "verdicts.md", ("<!-- measured:begin -->", "<!-- measured:end -->")


def verdict_roc(f: dict[str, Any]) -> list[str]:
    """How often verdicts are right on planted models: both halves, in docs/verdicts.md."""
    rows = {
        "sensitivity: right maps that pass, of those decided": "sensitivity",
        "specificity: wrong maps that fail, of those decided": "specificity",
        "of methods in use alone": "specificity_methods",
        "wrong maps that pass, of all": "wrong_that_pass",
        "known nonsense that passes, of all": "nonsense_that_passes",
        "decided, of all pairs": "decided",
    }
    splits = [s for s in ("tuning", "held out") if s in f["summary"]]
    lines = [f"| | {' | '.join(splits)} |", f"|---{'|---' * len(splits)}|"]
    for text, key in rows.items():
        cells = [_share_with_interval(f["summary"][s][key]) for s in splits]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


STEADY = "<!-- steady:begin -->", "<!-- steady:end -->"


def steadiness(f: dict[str, Any]) -> list[str]:
    """How steady verdicts are over subsets, what they cost, and what photos and random weights get; a sentence each."""
    names = {"mnist_cnn": "the MNIST CNN", "resnet20": "ResNet-20"}
    lines = [_steadiness_of(names[key], f[key]) for key in names if key in f]
    random, photos = f["untrained"], f["squeezenet_photos"]
    judged = random["pass"] + random["fail"] + random["inconclusive"]
    grades = {name: row["grade"] for name, row in photos["methods"].items()}
    controls = [grades[name] for name in grades if name in ("noise", "edges") or name.endswith("untrained model")]
    methods = [name for name in grades if grades[name] == "pass"]
    seconds = [row["cpu_s"] for row in photos["methods"].values()]
    lines.append(f"- On models with random weights {random['fail']} of {judged} fail, {random['pass']} pass.")
    failing = f"{controls.count('fail')} of {len(controls)}"
    lines.append(
        f"- On {photos['photos']} photos, with SqueezeNet, {', '.join(methods[:-1])} and {methods[-1]} pass; of noise, "
        f"edges and an untrained model's maps {failing} fail; {photos['not_tested_share']:.0%} of the tests are left "
        f"out. A method costs {min(seconds):.0f} to {max(seconds):.0f} s of CPU there."
    )
    return lines


def _steadiness_of(name: str, f: dict[str, Any]) -> str:
    both = [key for key, row in f["methods"].items() if row["pass"] and row["fail"]]
    rows = f["methods"].values()
    reasons = Counter[str]()
    for row in rows:
        reasons.update(row.get("undecided", {}))
    mixed = f" ({', '.join(both)} pass on some subsets and fail on others)" if both else ""
    timed = f.get("per subset", [])
    seconds = fmean(float(row["cpu_s"]) for row in timed) if timed else float(f["cpu_s_of_ten_methods"])
    n_timed = f" (mean of {len(timed)} rankings)" if 0 < len(timed) < f["subsets"] else ""
    why = ", ".join(f"{count} by {reason.removeprefix('undecided: ')!r}" for reason, count in reasons.most_common(3))
    return (
        f"- {name}, {f['subsets']} random subsets of {f['examples']} images, ten methods: {f['decided']:.0%} are "
        f"decided, and {f['agreeing_pairs']:.1%} of the decided pairs agree{mixed}. Ranking the ten costs "
        f"{seconds:.0f} s of CPU{n_timed}.{f' Undecided are {why}.' if why else ''}"
    )


OF_CONCEPTS = "<!-- concepts:begin -->", "<!-- concepts:end -->"


def verdicts_on_concepts(f: dict[str, Any]) -> list[str]:
    """How often verdicts on concepts are right, by method: both halves, and with bounds of the tuning half."""
    halves = [f"{key}, {split}" for key in ("sensitivity", "specificity") for split in ("tuning", "held out")]
    lines = [f"| verdict of | {' | '.join(halves)} |", "|---|---|---|---|---|"]
    for name, found in [*f["methods"].items(), ("all", f["all"])]:
        cells = [_share_by_wilson(found.get(split, {}).get(key)) for key in ("sensitivity", "specificity")
                 for split in ("tuning", "held out")]  # fmt: skip
        lines.append(f"| {name if name == 'all' else f'`{name}`'} | {' | '.join(cells)} |")
    moved, decided = f["with these bounds"], f["all"]["all"]["decided"]
    return [
        *lines, "",
        f"Decided are {_share_by_wilson(decided)} of all draws. With bounds that the tuning half chooses, in place of "
        f"the verdicts' own: sensitivity {_share_by_wilson(moved['sensitivity'])}, specificity "
        f"{_share_by_wilson(moved['specificity'])} on the other half.",
    ]  # fmt: skip


def _share_by_wilson(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    low, high = share["wilson"]
    return f"{share['share']:.2f} [{low:.2f}, {high:.2f}] ({share['count']} of {share['of']})"


INFLUENCE, LDS = HERE.parent / "docs" / "influence.md", ("<!-- influence:begin -->", "<!-- influence:end -->")


def influence(f: dict[str, Any]) -> list[str]:
    """How well scores of training examples predict retraining, by training, method and fraction left out."""
    one_run, mean = f["one run"], f["mean over seeds"]
    return [
        "5,000 MNIST images in [0, 1], a perceptron 784-128-64-10, 5 epochs in batches of 128: AdamW 2e-3 with a "
        "one-cycle rate, or SGD .01 with momentum .9 and a constant rate. 20 test images, 50 subsets per fraction. "
        "Each cell is the mean rank correlation with one run, with its 90 % interval over queries and seeds (in "
        "brackets how many seeds), and the slope of real on predicted change (all queries together; their median). "
        "Methods that estimate the mean over seeds are compared with one run here because it is asked for.",
        "",
        "| training | method | 1 % left out | 10 % | 50 % | noise to signal at 1 % |",
        "|---|---|---|---|---|---|",
        *(_influence_row(t, m, cells) for t, methods in one_run.items() for m, cells in methods.items()),
        "",
        "The mean over seeds, half of the examples left out, 10 seeds: scores of n trainings, averaged.",
        "",
        "| training | method, trainings | rank correlation | one real retraining |",
        "|---|---|---|---|",
        *(
            f"| {t} | {m} | {_lds(cells['0.5'])} | {cells['0.5']['one_retraining']:.2f} |"
            for t, methods in mean.items()
            for m, cells in methods.items()
        ),
        "",
        *influence_facts(),
    ]


def influence_facts() -> list[str]:
    """The other figures of influence, a sentence each."""
    logistic, cost = _read("influence_logistic"), _read("influence_unrolled")
    removal, mislabels = _read("influence_removal"), _read("influence_mislabels")
    store, captum = _read("influence_store"), _read("influence_captum")
    runs, ours, cnn = cost["in_trainings"], "neighbors x model", _read("influence_cnn")
    damped = {damping: row["all"] for damping, row in cnn["by_damping"].items()}
    sets = [cell for model in ("GELU", "ReLU") for name, cell in removal[model].items() if name.startswith("margin")]
    found = {m: mislabels[m] for m in mislabels if isinstance(mislabels[m], dict) and ours in mislabels[m]}
    of = {method: [f"{cells[method]['at 10%']['mean']:.3f}" for cells in found.values()] for method in (ours, "loss")}
    full = [f"{cells[ours]['at 20%']['mean']:.3f}" for cells in found.values()]
    return [
        f"- Logistic regression on {logistic['n_train']:,} MNIST images: predicted against real changes of "
        f"{logistic['left_out']:,} images really left out, R {logistic['all']['r']:.4f}, slope "
        f"{logistic['all']['slope']:.2f}.",
        f"- A CNN of {cnn['n_parameters']:,} parameters on {cnn['n_train']:,} MNIST images, not convex and not at a "
        f"minimum: predicted changes against those of {cnn['left_out']} images really left out, trained on equally "
        f"long with all images and without one, R {damped['0.01']['r']:.2f}, slope {damped['0.01']['slope']:.2f} with "
        f"damping .01 (Koh & Liang: .86); {damped['0.001']['r']:.2f} and {damped['0.001']['slope']:.2f} with .001.",
        f"- Remove these and it flips: {sum(c['flipped'] for c in sets)} of {sum(c['n'] for c in sets)} right answers "
        f"with margins of .6 and 1.4, with {min(min(c['sizes']) for c in sets)} to "
        f"{max(max(c['sizes']) for c in sets)} of 5,000 images, each proved by retraining; as many random images "
        f"flipped {sum(c['controls_flipped'] for c in sets)}.",
        f"- Wrong labels, a tenth of 20,000 flipped ({', '.join(found)}): in the first tenth looked at are "
        f"{', '.join(of[ours])} of them (by the model's loss alone {', '.join(of['loss'])}), in the first fifth "
        f"{', '.join(full)}.",
        f"- Cost, in trainings by torch: unrolled for 20 queries {runs['20_queries_stored']:.1f}, for one "
        f"{runs['1_query']:.1f}, the check of smoothness {runs['smoothness']:.1f}, 50 retrainings at once "
        f"{runs['50_retrainings']:.1f}; with recomputed states {cost['recomputed_of_stored']:.0%} of the memory.",
        f"- A store of {store['examples']:,} MNIST gradients of {store['parameters'] / 1e6:.1f} million parameters: "
        f"{store['seconds']:.0f} s of CPU, {store['MB on disk']:.0f} MB, at most {store['peak memory, GB']:.2f} GB of "
        f"memory; 20 queries then take {store['seconds for the scores of 20 queries']:.1f} s.",
        *(
            f"- {name}: {1 / captum[name]['ratio']:.1f}x faster than captum, same ranks."
            for name in captum
            if isinstance(captum[name], dict) and "ratio" in captum[name]
        ),
    ]


def _influence_row(training: str, method: str, cells: dict[str, Any]) -> str:
    figures = [_lds(cells[f]) + _slopes(cells[f]) if f in cells else "" for f in ("0.01", "0.1", "0.5")]
    n_seeds = len(cells["0.01"]["by_seed"])
    noise = cells["0.01"]["noise_to_signal"]
    return f"| {training} ({n_seeds}) | {method} | {' | '.join(figures)} | {noise:.2g} |"


def _lds(cell: dict[str, Any]) -> str:
    return f"{cell['lds']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def _slopes(cell: dict[str, Any]) -> str:
    return f", {cell['slope_pooled']:.2f} ({cell['slope_median']:.2f})" if "slope_pooled" in cell else ""


LANGUAGE, IN_LANGUAGE = HERE.parent / "docs" / "language.md", ("<!-- words:begin -->", "<!-- words:end -->")
TEXTS = ("<!-- texts:begin -->", "<!-- texts:end -->")
SENTENCES = ("<!-- sentences:begin -->", "<!-- sentences:end -->")


HELD_BACK = ("biases", "constants", "softmax", "epsilon")


def texts(f: dict[str, Any], deletion: dict[str, Any]) -> list[str]:
    """Texts: the planted word, deletion, swaps, conservation, captum and long texts."""
    planted, swaps = f["planted"], f["hotflip"]
    judged, error = planted["verdicts"], planted["integrated gradients, largest completeness error"]
    return [
        f"A word planted as the only reason of a small BERT, trained in {planted['seconds of training']:.0f} s (test "
        f"accuracy {planted['test accuracy']:.0%}):",
        "",
        "| method | the word is on top | verdict | with random weights |",
        "|---|---|---|---|",
        *(
            f"| {name} | {share:.0%} of {planted['triggered texts']} texts | {judged[name]['trained'][0]} | "
            f"{judged[name]['random weights'][0]}: {judged[name]['random weights'][1]} |"
            for name, share in planted["trigger on top"].items()
        ),
        "",
        f"The largest completeness error of integrated gradients is {error:.2%} of the score's difference. HotFlip "
        f"flips {swaps['flipped by at most 3 swaps']:.0%} of {swaps['right answers']} right answers of a classifier of "
        f"reviews with at most 3 swaps ({swaps['mean swaps']:.1f} on average, {swaps['queries per text']:.0f} "
        f"queries). Of the planted word's model it flips "
        f"{_flips_by_candidates(swaps['planted word, by n_candidates'])}.",
        "",
        *_deletion_of_texts(deletion),
        "",
        "AttnLRP's account as shares of the score (mean over 32 reviews), and the largest error of any layer and text:",
        "",
        f"| model | {' | '.join(HELD_BACK)} | largest error |",
        f"|---|{'---|' * (len(HELD_BACK) + 1)}",
        *(_account_row(name, row) for name, row in f["conservation"].items()),
        "",
        *_peer_and_long_texts(f["captum"], f["long texts"]),
    ]


def _flips_by_candidates(figures: dict[str, Any]) -> str:
    """The shares that are flipped, the largest number of candidates being all swaps."""
    *few, most = sorted(figures, key=int)
    rates = {f"n_candidates={n}": figures[n] for n in few} | {"all swaps": figures[most]}
    return ", ".join(
        f"{f['flipped by at most 3 swaps']:.0%} with {name} ({f['queries per text']:.0f} queries)"
        for name, f in rates.items()
    )


def _deletion_of_texts(f: dict[str, Any]) -> list[str]:
    depths = [name for name in f if name.endswith(" layers")]
    removals = list(next(iter(f[depths[0]]["maps"].values())))
    accuracies = " and ".join(f"{f[depth]['accuracy']:.0%}" for depth in depths)
    return [
        f"Which map ranks words best? BERTs of {' and '.join(depths)} trained on reviews (test accuracy {accuracies}), "
        f"mean of {f['seeds']} trainings, {f['texts']} texts, four ways of removing words: they become [MASK] (the "
        "default baseline of integrated gradients) or zeros, are left out of attention, or are taken out of the text. "
        "First the measure of AttnLRP's paper, the area between the curves of the class's logit with the least and the "
        "most relevant words first (higher is better):",
        "",
        *_removal_table(f, depths, removals, "between", ".2f"),
        "",
        "The area under the class's probability, the most relevant words first (deletion; lower is better):",
        "",
        *_removal_table(f, depths, removals, "deletion", ".3f"),
        "",
        *(_ranks_of_attn_lrp(f, depth, removals) for depth in depths),
    ]


def _removal_table(
    f: dict[str, Any], depths: Sequence[str], removals: Sequence[str], measure: str, digits: str
) -> list[str]:  # fmt: skip
    heads = [f"{depth}: {how}" for depth in depths for how in removals]
    rows = [
        f"| {name} | "
        + " | ".join(format(fmean(f[d]["maps"][name][how][measure]), digits) for d in depths for how in removals)
        + " |"
        for name in f[depths[0]]["maps"]
    ]
    return [f"| map | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}", *rows]


def _ranks_of_attn_lrp(f: dict[str, Any], depth: str, removals: Sequence[str]) -> str:
    """By the paper's measure: which of the others AttnLRP beats in each way of removing words."""
    maps = f[depth]["maps"]
    parts = []
    for how in removals:
        value = {name: fmean(by[how]["between"]) for name, by in maps.items() if name != "attn_lrp (gamma)"}
        better = [name for name in value if name != "attn_lrp" and value[name] > value["attn_lrp"]]
        parts.append(f"{how}: {', '.join(better) or 'none'}")
    return f"- {depth}, better than AttnLRP by the paper's measure: {'; '.join(parts)}."


def _account_row(name: str, row: dict[str, Any]) -> str:
    shares = " | ".join(f"{row['held back'][kind]:.1%}" for kind in HELD_BACK)
    return f"| {name} | {shares} | {row['largest error']:.0e} |"


def _peer_and_long_texts(peer: dict[str, Any], long: dict[str, Any]) -> list[str]:
    methods = ("gradient_x_input", "integrated_gradients", "attn_lrp")
    memory = ", ".join(f"{long[name]['bytes'] / 2**30:.1f} GB ({name})" for name in methods)
    missed = [name for name in methods if long[name]["bytes"] > long["at most"]]
    time = peer["time"]
    return [
        f"Integrated gradients of {peer['texts']} texts of {peer['tokens']} tokens at {peer['points']} points agree "
        f"with captum's LayerIntegratedGradients to {peer['largest difference'] / peer['largest value']:.0e} of the "
        f"largest value and take {time['ratio']:.2f} times its time (quartiles {time['low']:.2f} to "
        f"{time['high']:.2f}; below 1 ours is faster). With a text of {long['tokens']:,} tokens, Llama-shaped, the "
        f"process takes {memory} of memory in all"
        + (f"; the 2 GB asked for are missed by {', '.join(missed)}." if missed else ".")
    ]


def words(f: dict[str, Any]) -> list[str]:
    """Effect sizes of the published tests, and the bias before and after debiasing."""
    tests = {name: t for name, t in f["weat"].items() if name != "not made"}
    bias, speed = f["bias"], f["speed"]
    return [
        "347 word2vec vectors (GoogleNews, 300 dimensions); the tests "
        f"{', '.join(f['weat']['not made'])} lack their names there.",
        "",
        "| test | targets, by attributes | effect size (ddof=1) | 95 % of partitions | p |",
        "|---|---|---|---|---|",
        *(_weat_row(name, t) for name, t in tests.items()),
        "",
        "The 2,446 most frequent words of GloVe 6B, 50 dimensions: king - man + woman is "
        f"{bias['king - man + woman'][0]}, his - he + she is {bias['his - he + she'][0]}; the first component of the "
        f"{bias['pairs']} defining pairs that are there has {bias['first component']:.1%} of the variance. "
        f"{bias['neutral words']:,} neutral words:",
        "",
        "| debiasing | measure | before | after | at chance |",
        "|---|---|---|---|---|",
        *(
            f"| {method} | {name} | {v['before']:.3f} | {_small(v['after'])} | {v['by chance']:.3f} |"
            for method, measures in bias["debiasing"].items()
            for name, v in measures.items()
        ),
        "",
        f"A t-SNE map of the first 1,000 words keeps {bias['neighbors preserved by the map of 1,000 words']:.0%} of "
        f"each word's 10 nearest. On {speed['words']:,} random words of {speed['dimensions']} dimensions all ten "
        f"tests take {speed['seconds of all association tests']:.1f} s, hard debiasing with what remains "
        f"{speed['seconds of hard debiasing with what remains']:.1f} s (CPU).",
    ]


def sentences(f: dict[str, Any]) -> list[str]:
    """Accuracy of each probing task: bag of words, word vectors, and an encoder's best layer, trained and random."""
    encoder, tasks = f["encoder"], f["tasks"]
    shift = tasks["bigram_shift"]
    best = max(shift["trained"].values(), key=lambda layer: layer["accuracy"])
    gain, low, high = best["gain over the bag of words"]
    reached = "" if best["accuracy"] >= shift["index"] + 0.1 else ", which misses the 10 points asked for"
    return [
        "Six tasks made of UD English EWT; accuracy on the test sentences. The encoder is a small one of three "
        f"convolutions ({encoder['parameters']:,} parameters), trained in {encoder['seconds'] / 60:.0f} CPU minutes to "
        f"find swapped neighbors in the {encoder['training sentences']:,} training sentences ({encoder['words']:,} "
        "words), which had been swapped or not anew in each epoch; no other text, and none of the tasks' labels. It is "
        "probed by layer, by the mean of its words; the best of four layers is shown.",
        "",
        "| task | most frequent class | bag of words | reference | mean of GloVe vectors | encoder | random weights |",
        "|---|---|---|---|---|---|---|",
        *(_probing_row(name, t) for name, t in tasks.items()),
        "",
        f"On bigram_shift, which no bag of words can solve, the encoder has {gain * 100:+.1f} points ({low * 100:+.1f} "
        f"to {high * 100:+.1f}) beyond the words{reached}. It was trained on nothing but such swaps. Whether it uses "
        f"what is read: bigram_shift {shift['verdict'][0]}, past_present {tasks['past_present']['verdict'][0]}.",
    ]


def _probing_row(name: str, t: dict[str, Any]) -> str:
    trained, random = (max(layer["accuracy"] for layer in t[kind].values()) for kind in ("trained", "random weights"))
    index = f"{t['index']:.3f}" if t["index"] else "-"
    figures = t["majority"], t["bag of words"], t["mean of GloVe vectors"], trained, random
    majority, words, vectors, encoder, untrained = (f"{value:.3f}" for value in figures)
    return f"| {name} | {majority} | {words} | {index} | {vectors} | {encoder} | {untrained} |"


def _weat_row(name: str, t: dict[str, Any]) -> str:
    low, high = t["null band"]
    missing = f" (missing: {', '.join(w for ws in t['missing'].values() for w in ws)})" if t["missing"] else ""
    sets = f"{' / '.join(t['targets'])}, by {' / '.join(t['attributes'])}{missing}"
    return (
        f"| {name} | {sets} | {t['effect size']:.3f} | {low:.2f} to {high:.2f} | {t['p']:.2g}{' exact' * t['exact']} |"
    )


def _small(value: float) -> str:
    return f"{value:.0e}" if abs(value) < 1e-4 else f"{value:.3f}"


def verdict_sentence(f: dict[str, Any]) -> list[str]:
    """The same in README, of the models held out."""
    held_out = f["summary"]["held out"]
    right, wrong = (_share_with_interval(held_out[key]) for key in ("sensitivity", "specificity"))
    used, curve = held_out["specificity_methods"], f["auc"]["held out"]
    low, high = curve["over_models"]
    return [
        f"Verdicts, on {held_out['models']} planted models held out: {right} of the right maps that were decided "
        f"pass, {wrong} of the wrong ones fail; of wrong maps by methods in use, {used['count']} of {used['of']}. "
        f"Area under the ROC curve: {curve['auc']:.3f} [{low:.3f}, {high:.3f}]. "
        "How this is measured, and what it does not say: [verdicts](docs/verdicts.md).",
        "",
        '<img src="docs/pictures/verdict-roc.png" width="380" alt="Right maps that pass against wrong maps that '
        'pass, as all bounds are moved together: two curves close to the upper left corner">',
    ]


def _share_with_interval(share: dict[str, Any]) -> str:
    low, high = share["over_models"]
    return f"{share['share']:.2f} [{low:.2f}, {high:.2f}] ({share['count']} of {share['of']})"


GROUPS = HERE.parent / "docs" / "concepts.md", "<!-- groups:begin -->", "<!-- groups:end -->"
TCAV = HERE.parent / "docs" / "concepts.md", "<!-- tcav:begin -->", "<!-- tcav:end -->"


def groups(shortcuts: dict[str, Any], slices: dict[str, Any]) -> list[str]:
    """What was measured of shortcuts without labels and error slices, a sentence each."""
    null, everywhere = slices["without a slice"], slices["all"]
    hard = [a for a, f in slices["attributes"].items() if f["both at least .8"] < f["draws"]]
    return [
        f"- Shortcuts, on {shortcuts['seeds']} digits models with a planted 3x3 mark (another class and seed each): "
        f"the mark is found in {shortcuts['found']}. Claimed patches turn at least {shortcuts['lowest pasted']:.0%} of "
        f"the other images into the class, random ones at most {shortcuts['highest random']:.1%}; at least "
        f"{shortcuts['lowest share of members with the mark']:.0%} of the claimed clusters' members bear the mark, and "
        f"they hold at least {shortcuts['lowest share of marked that are members']:.0%} of those that do. Of "
        f"{shortcuts['control models']} runs on control models (images with and without the mark) "
        f"{shortcuts['false claims']} claims; their strongest patch turns "
        f"{shortcuts['largest share that follows on a control']:.0%}.",
        f"- Slices, on {slices['n']:,} digits with labels wrong for {slices['error inside']:.0%} of a planted slice "
        f"(half of a class, or a tenth of all, with an attribute) and {slices['error outside']:.0%} of the rest: "
        f"precision {everywhere['precision']:.2f}, recall {everywhere['recall']:.2f}, both at least .8 in "
        f"{everywhere['both at least .8']} of {everywhere['draws']} draws. Not always: {', '.join(hard)}. Without a "
        f"slice, a false one in {null['count']} of {null['n']} draws (up to {null['high']:.1%}).",
    ]


def tcav(planted: dict[str, Any], speed: dict[str, Any]) -> list[str]:
    """What was measured of concept vectors, a sentence each."""
    strict, usual = planted["at_0.01"], planted["at_0.05"]
    signs, same, whole = speed["signs"], speed["same_work"], speed["with_control_and_diagnostics"]
    mark, twins, random = strict["mark_where_used"], usual["mark_on_untrained"], usual["random"]
    by_paper, untrained = usual["random_by_the_papers_test"], usual["random_on_untrained"]
    seconds = [f"{same[name] / 1e3:.1f} s" for name in ("ours_ms", "peer_ms")]
    return [
        f"- A checkered mark that is correlated with a class, on {planted['seeds']} digits models: significant at 1% "
        f"(corrected) in {mark['count']} of {mark['n']} layers that use it (largest p "
        f"{planted['largest_p_where_used']:.2g}; {planted['layers_tested']} tested). On {twins['n']} untrained models "
        f"it is significant at 5% in {twins['count']}, at 1% in {strict['mark_on_untrained']['count']}.",
        f"- Of {random['n']} random concepts, {random['count']} are significant at 5% in any layer (at 1% "
        f"{strict['random']['count']}), on untrained models {untrained['count']} of {untrained['n']}; by the paper's "
        f"test of the same scores {by_paper['count']} of {by_paper['n']}.",
        f"- {speed['concepts']} concepts x {len(speed['layers'])} layers x {speed['random_sets']} random sets on the "
        f"MNIST CNN: {1 / same['ratio']:.1f} times as fast as captum {speed['versions']['captum']} with its default "
        f"classifier ({' against '.join(seconds)} of one CPU core); with the control and the diagnostics "
        f"{1 / whole['ratio']:.1f} times. With the same classifier the scores are the same "
        f"(largest difference {speed['largest_difference_with_the_same_classifier']:.2g}). captum's own is drawn "
        f"anew in each run; of the {signs['counted']} of {signs['all']} signs that two of its runs share beyond twice "
        f"their standard error, {signs['same_of_counted']} are ours, and {signs['same_as_the_exact_hinge_loss']} of "
        f"the {signs['counted_of_the_exact_hinge_loss']} sure ones of its objective, solved exactly.",
    ]


DICTIONARY = HERE.parent / "docs" / "concepts.md", "<!-- dictionary:begin -->", "<!-- dictionary:end -->"


def dictionaries(f: dict[str, Any]) -> list[str]:
    """Recovery of planted features by regime, MNIST's fc1 beside its twin, and verdicts where there is nothing."""
    parts = [_recovery(f["toy"])] if "toy" in f else []  # an interrupted run has some of its parts
    parts += [_mnist_dictionaries(f["mnist"])] if "mnist" in f else []
    parts += [_verdicts_of_nothing(f)] if "noise" in f and "random weights" in f.get("concepts", {}) else []
    return [line for part in parts for line in (*part, "")][:-1]


def _recovery(toy: dict[str, Any]) -> list[str]:
    rows = list(next(iter(toy["cells"].values())))
    return [
        f"**Planted features.** Rows of {toy['units']} values, each a sum of s of {toy['planted']} random directions. "
        f"Shown is the share of them that a dictionary of {toy['features']} features (k = s, {toy['steps']} steps, "
        f"mean of {toy['seeds']} seeds) has with a cosine above .9, over s and the number of rows; in brackets the "
        "explained variance on other rows. Where rows are few, or many directions are active at once, the variance "
        "is explained and the directions are not the planted ones.",
        "",
        f"| s | {' | '.join(f'{int(n):,} rows' for n in rows)} |",
        f"|---|{'---|' * len(rows)}",
        *(f"| {s} | {' | '.join(_recovery_cell(c[n]) for n in rows)} |" for s, c in toy["cells"].items()),
        "",
        f"Frozen twins recover at most {_highest_frozen(toy):.1%}.{_as_many_as_planted(toy)}",
    ]


def _as_many_as_planted(toy: dict[str, Any]) -> str:
    exact = toy.get("with as many features as planted")
    if exact is None:
        return ""
    cells = ", ".join(f"{c['recovered']:.2f} with {s} active" for s, c in exact["cells"].items())
    return (
        f" With exactly as many features as were planted, and {exact['rows']:,} rows: {cells}. Spare features help "
        "where many are active at once."
    )


def _recovery_cell(c: dict[str, Any]) -> str:
    share = f"{c['recovered']:.2f}"
    return f"{f'**{share}**' if c['recovered'] >= 0.9 else share} ({max(0.0, c['explained variance']):.2f})"


def _highest_frozen(toy: dict[str, Any]) -> float:
    return max(c["recovered by the frozen twin"] for cells in toy["cells"].values() for c in cells.values())


def _mnist_dictionaries(mnist: dict[str, Any]) -> list[str]:
    layers = {name: r for name, r in mnist.items() if isinstance(r, dict)}
    return [
        f"**MNIST's fc1.** {mnist['features']} features, k = {mnist['k']}, {mnist['examples']:,} training images of "
        "which a fifth is held out. The gap is the explained variance above the frozen twin's, with its interval "
        "(90 %, over held-out images and 3 seeds).",
        "",
        "| layer | dictionary | directions | explained variance | with k directions | dead | seeds agree | predictions "
        "kept | gap to the frozen twin |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_dictionary_line(layer, name, row, r) for layer, r in layers.items() for name, row in r["rows"].items()
          if name != "mean" and (name in ("dictionary", "frozen directions") or "," not in layer)),
    ]  # fmt: skip


def _dictionary_line(layer: str, name: str, row: dict[str, Any], r: dict[str, Any]) -> str:
    mean, low, high = r["gap"]
    gap = f"{mean:.3f} ({low:.3f} to {high:.3f}), {r['verdict']}" if name == "dictionary" else ""
    agreement = "" if row["stability"] is None else f"{row['stability']:.2f}"
    return (
        f"| {layer} | {name} | {row['features']} | {row['explained variance'][0]:.3f} | "
        f"{row['explained with k']:.3f} | {row['dead']:.1%} | {agreement} | {row['kept']:.1%} | {gap} |"
    )


def _verdicts_of_nothing(f: dict[str, Any]) -> list[str]:
    own, random, noise = f["concepts"]["digits model"], f["concepts"]["random weights"], f["noise"]
    passed = sum(r["verdict"] == "pass" for r in own.values())
    layer = own["default, nmf"]
    n_discover, n_dictionary = (sum(random[name].values()) for name in ("discover", "dictionary"))
    return [
        f"**Where there is nothing.** On the digits model `discover` passes in {passed} of {len(own)} settings (two "
        f"layers, three factorizations); ten NMF concepts of {layer['layer']} keep an accuracy of "
        f"{layer['accuracy from concepts']:.1%} (random directions {layer['from random directions']:.1%}, the mean "
        f"{layer['from the mean']:.1%}). On {random['models']} models with random weights it passes in "
        f"{random['discover'].get('pass', 0)} of {n_discover} runs, though {random['predictions kept']:.0%} of their "
        f"predictions are kept. `dictionary` passes in {random['dictionary'].get('pass', 0)} of {n_dictionary} of "
        f"them, as their activations have structure as well, and in {noise['verdicts'].get('pass', 0)} of "
        f"{noise['draws']} on Gaussian noise with few rows.",
    ]


DISSECT = HERE.parent / "docs" / "concepts.md", "<!-- dissect:begin -->", "<!-- dissect:end -->"


def dissect(f: dict[str, Any]) -> list[str]:
    """What was measured of dissection: planted detectors, verdicts on the zoo, causal units."""
    half = f["codes"] // 2
    verdicts = "; ".join(_dissected(name, row) for name, row in f.get("verdicts", {}).items())
    return [
        *(_planted_detectors(f["planted"]) if "planted" in f else []),
        *([f"- The zoo's models on 200 digits, detectors in the layer that decides (its twins' mean with random "
           f"weights; rotated): {verdicts}."] if verdicts else []),
        f"- Causal units, chosen on {half} codes and tested on {half} others: gone without them, there with them "
        "inserted, gone without as many random units (mean of 19 sets), largest change of a concept apart (of a "
        "quadrant the other quadrants, of holes the ink). Mean of the seeds, the worst in brackets:",
        "",
        "| generator, layer | concept | units | gone | inserted | random | apart | reached |",
        "|---|---|---|---|---|---|---|---|",
        *(_causal_row(rows) for rows in _by_generator_and_concept(f["causal"])),
    ]  # fmt: skip


def _planted_detectors(planted: dict[str, Any]) -> list[str]:
    runs = [kind for seed in planted.values() for kind in seed.values()]
    found, of = sum(r["found"] for r in runs), sum(len(r["IoU"]) for r in runs)
    lowest, passed = min(r["lowest ratio"] for r in runs), sum(r["verdict"] == "pass" for r in runs)
    return [
        "- Planted detectors (each concept of digits as a unit, exactly and with many wrong pixels, "
        f"{len(planted)} seeds): {found} of {of} found as what they are, with at least {lowest:.2f} of the "
        f"plant's own IoU; {passed} of {len(runs)} verdicts pass."
    ]


def _dissected(name: str, row: dict[str, Any]) -> str:
    layers = row["layers"]
    best = max(layers, key=lambda a: (layers[a]["concepts"], layers[a]["detectors"] / layers[a]["units"]))
    p = layers[best]
    counts = f"{p['detectors']} of {p['units']} ({p['random']:.1f}; {p['rotated']:.1f})"
    return f"{name} `{best}` {counts}, {row['verdict']}"


def _by_generator_and_concept(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["concept"] == "hole", row["concept"])):  # quadrants first
        groups.setdefault((row["generator"], row["concept"], row["layer"]), []).append(row)
    return list(groups.values())


def _causal_row(rows: list[dict[str, Any]]) -> str:
    def cell(key: str, worst: Callable[..., float]) -> str:
        values = [r[key] for r in rows]
        return f"{sum(values) / len(values):.0%} ({worst(values):.0%})"

    units = sorted({r["units"] for r in rows})
    listed = f"{units[0]} to {units[-1]}" if len(units) > 1 else f"{units[0]}"
    cells = [
        f"{rows[0]['generator']}, `{rows[0]['layer']}`", rows[0]["concept"], f"{listed} of {rows[0]['of']}",
        cell("removed", min), cell("restored", min), cell("random removed (mean)", max),
        cell("largest change apart", max), f"{sum(r['reached'] for r in rows)} of {len(rows)}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    _between(HERE.parent / "README.md", BEGIN, END, headline_table(_read))
    BENCHMARKS.write_text(leaderboard())
    anew = HERE / "results" / "randomization.json"
    if anew.exists():
        _between(GUIDE, *ANEW, randomization(json.loads(anew.read_text())))
    _between(VERDICTS, *MEASURED, verdict_roc(_read("verdict_roc")))
    _between(VERDICTS, *STEADY, steadiness(_read("verdicts")))
    if (HERE / "results" / "verdict_roc_concepts.json").exists():
        _between(VERDICTS, *OF_CONCEPTS, verdicts_on_concepts(_read("verdict_roc_concepts")))
    _between(HERE.parent / "README.md", *IN_README, verdict_sentence(_read("verdict_roc")))
    if (HERE / "results" / "influence_lds.json").exists():
        _between(INFLUENCE, *LDS, influence(_read("influence_lds")))
    if (HERE / "results" / "concepts_shortcuts.json").exists():
        _between(*GROUPS, groups(_read("concepts_shortcuts"), _read("concepts_slices")))
    if (HERE / "results" / "concepts_tcav_captum.json").exists():
        _between(*TCAV, tcav(_read("concepts_tcav"), _read("concepts_tcav_captum")))
    if (HERE / "results" / "concepts_dictionary.json").exists():
        _between(*DICTIONARY, dictionaries(_read("concepts_dictionary")))
    if (HERE / "results" / "concepts_dissect.json").exists():
        _between(*DISSECT, dissect(_read("concepts_dissect")))
    _between(LANGUAGE, *IN_LANGUAGE, words(_read("words")))
    _between(LANGUAGE, *TEXTS, texts(_read("text_attribution"), _read("text_deletion")))
    _between(LANGUAGE, *SENTENCES, sentences(_read("sentence_probing")))
    compared = HERE / "results" / "defenses.json"
    if compared.exists():
        _between(GUIDE, *SIDE_BY_SIDE, defenses(json.loads(compared.read_text())))


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return content


def _between(file: Path, begin: str, end: str, lines: list[str]) -> None:
    head, rest = file.read_text().split(begin)
    file.write_text(f"{head}{begin}\n{chr(10).join(lines)}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
