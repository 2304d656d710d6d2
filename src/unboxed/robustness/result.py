"""The result of a robustness evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..engine.optimize.constraints import eps_with_rounding_tolerance, format_eps
from ..engine.proportion import Proportion
from ..engine.result_views import ResultViewsMixin
from ..errors import InputError
from ..inputs.labels import unique_class_names
from .gradient_masking import MaskingFinding, masking_findings_suffix


@dataclass(frozen=True, repr=False, eq=False)
class Robustness(ResultViewsMixin):
    """Clean and robust accuracy of N examples, over E eps, A attacks and K classes."""

    returns: ClassVar[str] = "curve"

    norm: str
    eps: tuple[float, ...]  # (E,), ascending
    attacks: tuple[str, ...]  # (A,)
    classes: tuple[str, ...]  # (K,)
    labels: Tensor  # (N,)
    is_correct: Tensor  # (N,) bool: correct without an attack
    is_robust: Tensor  # (A, E, N) bool: still correct under each attack
    min_distance: Tensor  # (N,) of the nearest adversarial image found; 0: misclassified without one; inf: none found
    mean_queries: Tensor  # (A,) mean forward passes per example, over all eps
    masking_findings: tuple[MaskingFinding, ...]
    interrupted: bool = False  # by Ctrl-C
    minimal_attack: str = ""  # name of the attack that searched for `min_distance`; "": none did

    @property
    def all_attacks(self) -> tuple[str, ...]:
        """The names of all attacks that ran, with the one that searches for the smallest change."""
        return tuple(dict.fromkeys(name for name in (*self.attacks, self.minimal_attack) if name))

    @property
    def clean_accuracy(self) -> Proportion:
        return Proportion(int(self.is_correct.sum()), len(self.is_correct))

    def robust_accuracy(self, eps: float | None = None, attack: str | None = None) -> Proportion:
        """Accuracy under all attacks together (or one), at one eps (default: the largest). Raises InputError."""
        return Proportion(int(self.robust_examples(eps, attack).sum()), len(self.is_correct))

    def robust_examples(self, eps: float | None = None, attack: str | None = None) -> Tensor:
        """(N,) bool: still correct under all attacks together (or one), at one eps (default: the largest).

        An adversarial image within eps counts whichever attack found it: at a larger eps, or as the smallest change.
        Raises InputError.
        """
        if eps is not None and eps not in self.eps:
            raise InputError(f"eps must be one of {', '.join(map(format_eps, self.eps))}; got {eps!r}")
        if attack is not None and attack not in self.attacks:
            raise InputError(f"attack must be one of {', '.join(self.attacks)}; got {attack!r}")
        eps_index = -1 if eps is None else self.eps.index(eps)
        if attack is not None:
            return self.is_robust[self.attacks.index(attack), eps_index]
        return self.is_robust[:, eps_index].all(0) & (
            self.min_distance > eps_with_rounding_tolerance(self.eps[eps_index])
        )

    def accuracy_by_class(self, eps: float | None = None) -> dict[str, tuple[Proportion, Proportion]]:
        """{class: (clean, robust accuracy)} of the classes that occur; of equal names with their numbers: "cat (3)"."""
        is_robust = self.robust_examples(eps)
        masks = {name: self.labels == k for k, name in enumerate(unique_class_names(self.classes))}
        return {
            name: (
                Proportion(int(self.is_correct[mask].sum()), int(mask.sum())),
                Proportion(int(is_robust[mask].sum()), int(mask.sum())),
            )
            for name, mask in masks.items()
            if mask.any()
        }

    @property
    def median_distance(self) -> float:
        """Median distance of the correct examples to the nearest adversarial image found; inf: half have none."""
        distances = self.min_distance[self.is_correct]
        return float(distances.sort().values[(len(distances) - 1) // 2]) if len(distances) else float("nan")

    def __repr__(self) -> str:
        curve = ", ".join(
            f"{self.robust_accuracy(eps_value).value:.1%} within {format_eps(eps_value)}" for eps_value in self.eps
        )
        summary = f"clean accuracy {self.clean_accuracy.value:.1%} of {len(self.is_correct)}, robust {curve}"
        summary += f" ({self.norm}; {', '.join(self.all_attacks)})"
        findings_text = masking_findings_suffix(self.masking_findings)
        return f"Robustness({summary}{findings_text}{', interrupted' if self.interrupted else ''})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "norm": self.norm,
            "n": len(self.is_correct),
            "clean": self.clean_accuracy.to_dict(),
            "eps": list(self.eps),
            "robust": {
                attack_name: [self.robust_accuracy(eps_value, attack_name).to_dict() for eps_value in self.eps]
                for attack_name in self.attacks
            },
            "all": [self.robust_accuracy(e).to_dict() for e in self.eps],
            "classes": {
                class_name: [proportion.to_dict() for proportion in proportions]
                for class_name, proportions in self.accuracy_by_class().items()
            },
            "median_distance": self.median_distance if self.median_distance < float("inf") else None,
            "minimal_attack": self.minimal_attack,
            "queries": dict(zip(self.attacks, self.mean_queries.tolist(), strict=True)),
            "gradient_masking": [finding.to_dict() for finding in self.masking_findings],
            "interrupted": self.interrupted,
        }
