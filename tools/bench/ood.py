"""How fast, and in how much memory, are the out-of-distribution scores? Ours against pytorch-ood's.

Synthetic logits and features. Both get the same tensors and do the same work, fitted beforehand on the same rows; the
two run in turn, and each time is the median of its runs. Results are compared before a time is shown. The peak is
that of our calls alone. Logits, neighbours and distances have a process each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import arguments, finish, machine, show
from matching import _memory_mb, _reset_peak_mb, apart
from torch import Tensor
from torch.nn.functional import normalize

from reliability_hooks.signals.ood import scores
from reliability_hooks.signals.ood.base import Rows
from reliability_hooks.signals.ood.mahalanobis import Mahalanobis, RelativeMahalanobis
from reliability_hooks.signals.ood.neighbours import Partition
from reliability_hooks.signals.ood.vim import ViM

CLASSES, K = 10, 50
FIT = 20_000
Pair = tuple[Callable[[], Tensor], Callable[[], Tensor] | None]


def logits(n: int) -> dict[str, Pair]:
    """Each score of the logits, and pytorch-ood's where it has it; a factor of ours that theirs lacks is taken out."""
    from pytorch_ood import detector

    f = 2 * torch.randn(n, 80, generator=torch.Generator().manual_seed(0))  # few p under 1e-7, where their GEN is bent
    return {
        "msp": (lambda: scores.msp(f, "softmax"), lambda: detector.MaxSoftmax.score(f)),
        "max_logit": (lambda: scores.max_logit(f), lambda: detector.MaxLogit.score(f)),
        "energy": (lambda: scores.energy(f), lambda: detector.EnergyBased.score(f)),
        "entropy": (lambda: scores.entropy(f), lambda: detector.Entropy.score(f)),
        "gen": (lambda: scores.gen(f, "softmax"), lambda: detector.GEN.score(f).mul_(f.shape[1])),
        "joint_energy": (lambda: scores.joint_energy(f), None),
    }


def features(n: int, seed: int = 0, d: int = 256) -> tuple[Tensor, Tensor]:
    """Features of known objects about the means of their classes, in correlated directions; and their classes."""
    fixed = torch.Generator().manual_seed(99)
    means, mix = 2 * torch.randn(CLASSES, d, generator=fixed), torch.randn(d, d, generator=fixed) / (2 * d**0.5)
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=g)
    return (torch.randn(n, d, generator=g) @ (mix + torch.eye(d))).add_(means[y]), y


def knn(n: int, bank: int) -> dict[str, Pair]:
    from pytorch_ood.detector import KNN

    known, y = features(bank)
    z, _ = features(n, 1)
    theirs, ours = KNN(None, K).fit_features(known, y), Partition.of(normalize(known, dim=1), K)
    return {"knn": (lambda: ours.distance(normalize(z, dim=1), K), lambda: theirs.predict_features(z))}


def distances(n: int) -> dict[str, Pair]:
    """Mahalanobis, relative Mahalanobis and ViM; logits are made from the features within the time of both."""
    from pytorch_ood import detector

    known, y = features(FIT)
    z, _ = features(n, 1)
    d = z.shape[1]
    g = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(CLASSES, d, generator=g) / d**0.5, torch.randn(CLASSES, generator=g)
    none = torch.zeros(max(n, FIT), dtype=torch.int64)

    def rows(x: Tensor, classes: Tensor) -> Rows:
        return Rows(classes, torch.addmm(bias, x, weight.T), "softmax", x, x, weight[None], bias[None], none[: len(x)])

    taught = [Mahalanobis(), RelativeMahalanobis(), ViM()]
    for score in taught:
        score.learn(rows(known, y))
        score.finish()
    plain, relative, vim = taught
    theirs = detector.Mahalanobis(None).fit_features(known, y)
    theirs_relative = detector.RMD(None).fit_features(known, y)
    theirs_vim = detector.ViM(None, d // 2, weight, bias).fit_features(known, y)
    fresh = Rows(none[:n], features=z)
    return {
        "mahalanobis": (lambda: plain.score(fresh), lambda: theirs.predict_features(z).mul_(2 * FIT)),
        "relative_mahalanobis": (lambda: relative.score(fresh), lambda: theirs_relative.predict_features(z).mul_(FIT)),
        "vim": (lambda: vim.score(rows(z, none[:n])), lambda: theirs_vim.predict_features(z)),
    }


def contest(pairs: Callable[[], dict[str, Pair]], rounds: int) -> list[dict[str, Any]]:
    """Median seconds of each, run in turn in this process, how far the results differ, and megabytes ours took."""
    table = []
    for name, (ours, theirs) in pairs().items():
        took: tuple[list[float], list[float]] = ([], [])
        apart_by = None
        for k in range(rounds + 1):  # the first of each only warms up, and is compared
            results = []
            for which, call in enumerate((ours, theirs)):
                if call is not None:
                    start = time.perf_counter()
                    results.append(call())
                    if k:
                        took[which].append(time.perf_counter() - start)
            if len(results) == 2 and not k:
                spread = float(results[1].double().std())
                apart_by = float((results[0].double() - results[1].double()).abs().max()) / spread
            del results
        before = _reset_peak_mb()
        ours()
        peak = _memory_mb("VmHWM") - before
        seconds, others = (statistics.median(t) if t else None for t in took)
        table.append({"score": name, "seconds": seconds, "pytorch_ood_seconds": others,
                      "ratio": seconds / others if seconds and others else None,
                      "largest_difference_in_std": apart_by, "peak_mb": peak})
    return table


def main() -> None:
    args = arguments(__doc__, rounds={"type": int, "default": 3, "help": "timed runs of each"})
    n, queries, bank = (30_000, 500, 50_000) if args.quick else (1_000_000, 10_000, 100_000)
    parts: list[Callable[[], dict[str, Pair]]] = [
        partial(logits, n), partial(knn, queries, bank), partial(distances, n),
    ]
    table = [row for part in parts for row in apart(contest, part, args.rounds)]
    show(f"scores of {n:,} objects; kNN of {queries:,} against {bank:,}", list(table[0]),
         [["-" if v is None else v for v in row.values()] for row in table])
    # pytorch-ood's GEN clamps p at 1e-7, which bends it for the surest objects: `signals.ood.scores.gen`
    allowed = {"gen": 0.1}
    if far := [row for row in table if (row["largest_difference_in_std"] or 0) > allowed.get(row["score"], 0.01)]:
        raise SystemExit(f"the results disagree: {far}")

    by = {row["score"]: row for row in table}
    both = [by[name] for name in ("msp", "max_logit", "energy", "entropy", "gen")]
    figures = {
        "logit_scores_time_ratio": sum(r["seconds"] for r in both) / sum(r["pytorch_ood_seconds"] for r in both),
        "knn_speedup": 1 / by["knn"]["ratio"],
        **{f"{name}_time_ratio": by[name]["ratio"] for name in ("vim", "mahalanobis", "relative_mahalanobis")},
        **{f"{row['score']}_time_ratio": row["ratio"] for row in both},
        "peak_mb": max(row["peak_mb"] for row in table),
    }
    protocol = {
        "logits": [n, 80], "features": [n, 256], "classes": CLASSES, "fitted_on": FIT, "knn_queries": queries,
        "knn_bank": bank, "k": K, "rounds": args.rounds, **machine(),
        "seconds": "median of scoring alone, ours and pytorch-ood's in turn",
        "logit_scores_time_ratio": "sum over msp, max_logit, energy, entropy, gen; pytorch-ood has no joint energy",
        "largest_difference_in_std": "of the two results, in standard deviations of theirs; both float32",
        "peak_mb": "most memory that one of our calls took beyond its input, of all scores",
    }
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
