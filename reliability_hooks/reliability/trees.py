"""Gradient boosted trees: grown by scikit-learn, evaluated in torch over all rows and trees at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calibrators import logit
from .state import State

_CELLS = 1 << 14  # row-tree pairs per pass: stays in the cache, and below where torch wakes other threads


def one_thread_if_small(cells: int) -> AbstractContextManager[Any]:
    """Keep a fit on a small table to one thread: OpenMP's barriers cost more than the work between them.

    Most of all where other processes share the cores, as a barrier then waits for a thread that is not
    running.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(limits=1 if cells < 4_000_000 else None)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Trees:
    """An additive model of T binary trees with M nodes in all.

    At a node with feature f a row goes left when x[f] <= threshold, or when x[f] is NaN and missing_left; a
    leaf is its own left and right child, so that after `depth` steps every row rests in a leaf.

    Attributes:
        feature, left, right: (M,) int64; children are indices into the same M nodes.
        threshold, value: (M,) float64; value is the leaf's summand, 0 elsewhere.
        missing_left: (M,) bool.
        root: (T,) int64, where each tree begins.
        baseline: () float64.
        depth: the longest way from a root to a leaf.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    missing_left: Tensor
    root: Tensor
    baseline: Tensor
    depth: int

    @classmethod
    def fit(
        cls,
        x: Tensor,
        target: Tensor,
        *,
        iterations: int = 150,
        classify: bool,
        increasing: int | None = 0,
        seed: int = 0,
    ) -> Trees:
        """Grow small, slow, regularised trees (scikit-learn's histogram boosting).

        Args:
            x: (N, F) float64, NaN allowed.
            target: (N,) bool with `classify` (then `raw` is the logit), else float.
            iterations: number of trees.
            classify: log loss, else squared error.
            increasing: the column in which the model must not fall (the score), or None.
            seed: of the binning's subsample.

        Raises:
            ValueError: zero rows.
        """
        if len(target) == 0:
            raise ValueError("boosting needs labelled detections, got 0")
        y = target.to(torch.bool) if classify else target.to(torch.float64)
        if bool((y == y[0]).all()):
            return cls.constant(logit((y.sum() + 1.0) / (len(y) + 2.0)) if classify else y[0])
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        grower = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
        model = grower(
            max_iter=iterations,
            learning_rate=0.05,
            max_leaf_nodes=8,
            max_depth=4,
            min_samples_leaf=20,
            l2_regularization=5.0,
            max_bins=64,
            early_stopping=False,
            monotonic_cst=[int(j == increasing) for j in range(x.shape[1])],
            random_state=seed,
        )
        with one_thread_if_small(x.numel()):
            model.fit(x.numpy(), y.numpy())
            return cls.from_sklearn(model, x[:256])

    @classmethod
    def from_sklearn(cls, model: Any, sample: Tensor) -> Trees:
        """Flatten a fitted binary HistGradientBoostingClassifier or a HistGradientBoostingRegressor.

        Args:
            model: without categorical features.
            sample: (n, F) rows on which the result is compared with scikit-learn, n >= 1.

        Raises:
            RuntimeError: the results differ, so this scikit-learn keeps its trees in a way that we do not
                know.
        """
        import numpy as np

        grown = [
            predictor for (predictor,) in model._predictors
        ]  # scikit-learn has no public way to its trees
        sizes = [len(tree.nodes) for tree in grown]
        nodes = np.concatenate([tree.nodes for tree in grown])
        root = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        shift, here = np.repeat(root, sizes), np.arange(len(nodes))
        leaf = nodes["is_leaf"].astype(bool)

        def tensor(values: Any, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(values), dtype=dtype)

        trees = cls(
            feature=tensor(np.where(leaf, 0, nodes["feature_idx"]), torch.int64),
            threshold=tensor(np.where(leaf, np.inf, nodes["num_threshold"]), torch.float64),
            left=tensor(np.where(leaf, here, nodes["left"] + shift), torch.int64),
            right=tensor(np.where(leaf, here, nodes["right"] + shift), torch.int64),
            value=tensor(np.where(leaf, nodes["value"], 0.0), torch.float64),
            missing_left=tensor(nodes["missing_go_to_left"].astype(bool), torch.bool),
            root=tensor(root, torch.int64),
            baseline=tensor(
                np.asarray(model._baseline_prediction, dtype=np.float64).reshape(()), torch.float64
            ),
            depth=int(nodes["depth"].max()),
        )
        theirs = model.decision_function if hasattr(model, "decision_function") else model.predict
        if not np.allclose(trees.raw(sample).numpy(), theirs(sample.numpy()), rtol=0, atol=1e-8):
            raise RuntimeError(
                "the flattened trees differ from this scikit-learn's own output: use another version of it"
            )
        return trees

    @classmethod
    def constant(cls, value: Tensor) -> Trees:
        """No tree: every row gets `value` ()."""
        whole, real = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        return cls(whole, real, whole, whole, real, whole.bool(), whole, value.to(torch.float64), 0)

    def raw(self, x: Tensor) -> Tensor:
        """Matrix (N, F) float64, NaN allowed, to (N,): baseline plus the sum of one leaf per tree."""
        return torch.cat([self._leaves(rows).sum(1) for rows in self._batches(x)]) + self.baseline

    def raw_staged(self, x: Tensor, stages: Sequence[int]) -> Tensor:
        """(N, len(stages)): what `raw` would be with only the first s trees, for each s in stages."""
        if len(self.root) == 0:
            return self.baseline.expand(len(x), len(stages))
        last = torch.tensor(stages).clamp(1, len(self.root)) - 1
        return torch.cat([self._leaves(rows).cumsum(1)[:, last] for rows in self._batches(x)]) + self.baseline

    def _batches(self, x: Tensor) -> Sequence[Tensor]:
        return torch.split(x, max(1, _CELLS // max(1, len(self.root))))

    def _leaves(self, x: Tensor) -> Tensor:
        """(N, T): the value of the leaf in which each row comes to rest in each tree."""
        node = self.root.expand(len(x), -1)
        missing = bool(x.isnan().any())
        for _ in range(self.depth):
            seen = x.gather(1, self.feature.take(node))
            go_left = seen <= self.threshold.take(node)
            if missing:
                go_left |= seen.isnan() & self.missing_left.take(node)
            node = torch.where(go_left, self.left.take(node), self.right.take(node))
        return self.value.take(node)

    def state(self) -> State:
        """Tensors and meta for `from_state`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return tensors, {"kind": "trees", "depth": self.depth}

    @classmethod
    def from_state(cls, state: State) -> Trees:
        """Rebuild from `state()`."""
        return cls(**state[0], depth=int(state[1]["depth"]))
