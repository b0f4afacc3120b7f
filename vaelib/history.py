"""What a run reports as it goes on, and what is left of that at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]


class Reports:
    """The reports so far; a stretch at a time is stacked, lest saving takes ever longer."""

    def __init__(self, kept: Arrays | None = None) -> None:
        self.kept = kept or {}  # name → (R, …)
        self.new: list[Arrays] = []
        self.last: Arrays = {name: values[-1] for name, values in self.kept.items()}

    def __len__(self) -> int:
        return len(self.new) + len(next(iter(self.kept.values()), ()))

    def add(self, report: Arrays) -> None:
        """Takes in one more."""
        self.new.append(report)
        self.last = report

    def stacked(self) -> Arrays:
        """All of them, name → (R, …)."""
        if self.new:
            new = {name: np.stack([report[name] for report in self.new]) for name in self.new[0]}
            kept = self.kept
            self.kept = {n: np.concatenate([kept[n], new[n]]) if kept else new[n] for n in new}
            self.new = []
        return self.kept


@dataclass(frozen=True, repr=False)
class History:
    """What a run reported: each term, averaged over the steps since the report before.

    Attributes:
        steps: (R,), the step each report was made at.
        terms: name → (R,), or (R, d) for a term per latent such as "kl". From `fit_seeds` with
            the seeds in front: (S, R) and (S, R, d). `history["kl"]` looks one up.
        interrupted: whether the run was stopped before its last step.
        held_out: the same terms of the held-out rows, in eval mode, at the step of the report;
            empty where there are none.
        best: the step with the lowest held-out loss, and whose weights the model has now where
            the run had a patience; from `fit_seeds` (S,). None without held-out rows.
        diverged: seeds whose loss left the numbers, which `fit_seeds` went on without.
    """

    steps: np.ndarray
    terms: Arrays
    interrupted: bool
    held_out: Arrays = field(default_factory=dict)
    best: np.ndarray | np.integer | None = None
    diverged: tuple[int, ...] = ()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.terms:
            raise KeyError(f"no term {name!r} was reported, only {sorted(self.terms)}")
        return self.terms[name]

    def __repr__(self) -> str:
        if not len(self.steps):
            return "History: no step was finished"
        ends = [self._range("loss", self.terms)]
        if self.held_out:
            ends.append(self._range("held-out loss", self.held_out))
        if self.best is not None:
            ends.append(f"best at step {np.unique(self.best).tolist()}")
        if self.diverged:
            ends.append(f"diverged: seeds {list(self.diverged)}")
        stopped = ", interrupted" if self.interrupted else ""
        reports = f"{len(self.steps)} reports to step {self.steps[-1]}{stopped}"
        return f"History: {reports}; {'; '.join(ends)}; terms {', '.join(self.terms)}"

    def _range(self, name: str, terms: Arrays) -> str:
        first, last = (np.nanmean(terms["loss"][..., i]) for i in (0, -1))
        return f"{name} {first:.4g} → {last:.4g}"

    def plot(self) -> Figure:
        """Draws each term over the steps, that of held-out rows dashed; needs matplotlib.

        Terms per latent are summed. Of several seeds, each is a thin line and the median a thick
        one.
        """
        from matplotlib import pyplot as plt

        from vaelib.plots import color

        figure, axes = plt.subplots(
            1, len(self.terms), figsize=(3.2 * len(self.terms), 2.8), squeeze=False
        )
        seeds = self.terms["loss"].ndim - 1 if self.terms else 0
        for ax, name in zip(axes[0], self.terms, strict=True):
            for k, (terms, dashes) in enumerate(((self.terms, "-"), (self.held_out, "--"))):
                if name not in terms:
                    continue
                values = terms[name]
                values = values if values.ndim == seeds + 1 else values.sum(-1)
                for run in np.atleast_2d(values) if seeds else ():
                    ax.plot(self.steps, run, dashes, color=color(k), lw=0.6, alpha=0.4)
                middle = np.nanmedian(values, 0) if seeds else values
                ax.plot(
                    self.steps, middle, dashes, color=color(k), label=("training", "held out")[k]
                )
            ax.set(title=name, xlabel="step")
        if self.held_out:
            axes[0, 0].legend()
        figure.tight_layout()
        return figure
