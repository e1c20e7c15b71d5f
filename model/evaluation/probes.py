"""Leakage of an attribute: what a fresh attacker reads in user vectors, and closed-form erasure of it.

The chance level of an AUC is that of the attacker's scores under permuted labels of the held-out users. It needs no
attacker fitted anew: one that was fitted on shuffled labels gives held-out users scores that have nothing to do with
their labels, and the distribution of the AUC of such scores does not depend on the scores (Mann and Whitney 1947).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.structs import Group
from fairness_utils import means_defined, over
from model.evaluation.chance import PERMUTATIONS, level, permutations
from model.evaluation.keys import MetricKey

ATTACKERS = ("linear", "mlp", "within")
HIDDEN_WIDTH = 64
VALIDATION_FRACTION = 0.1
# Few users and many dimensions ask for a strong penalty.
WITHIN_FOLDS, WITHIN_PENALTY = 5, 0.01
# Whitened cross-covariances have no scale, so anything below this is rounding and not a direction.
DIRECTION_TOLERANCE = 1e-8


def held_out_users(codes: np.ndarray, fraction: float = 0.2, seed: int | np.random.Generator = 0) -> np.ndarray:
    """Draw `fraction` of each group's users for the probe's test: `[U]` bool, from `codes [U]` (-1 unknown).

    Of a group of two users or more at least one is drawn and at least one is not. Unknown users are never drawn.
    Raises ValueError for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held-out fraction is {fraction}; allowed is the open interval (0, 1), the default is 0.2")
    codes = np.asarray(codes)
    known = np.flatnonzero(codes >= 0)
    order = known[np.lexsort((np.random.default_rng(seed).random(len(known)), codes[known]))]
    counts = np.bincount(codes[order])  # [G]
    quota = np.clip(np.floor(fraction * counts + 0.5).astype(np.int64), np.minimum(1, counts - 1), counts - 1)
    first = np.cumsum(counts) - counts
    held_out = np.zeros(len(codes), dtype=bool)
    held_out[order] = np.arange(len(order)) - first[codes[order]] < quota[codes[order]]
    return held_out


def leakage(vectors: np.ndarray, groups: Mapping[str, Group], held_out: np.ndarray, seed: int) -> dict[str, float]:
    """Measure what fresh attackers read of every attribute in `vectors [U, D]`: AUC on the users of `held_out [U]`.

    Keys are `leakage_auc/gender` (the strongest attacker), `leakage_auc_linear/gender` and so on for each attacker,
    `leakage_auc_erased/gender` after closed-form linear erasure of the attribute, which needs no training, and the
    chance level of each, `leakage_auc/chance/gender` and so on.
    """
    results: dict[str, float] = {}
    for name, group in groups.items():
        attack = Attack.on(vectors, group.codes, held_out, seed)
        erased = Attack.on(linear_erasure(vectors, group.codes, ~held_out), group.codes, held_out, seed)
        figures = {"leakage_auc": attack.strongest()}
        figures |= {f"leakage_auc_{kind}": attack.of(kind) for kind in ATTACKERS}
        figures["leakage_auc_erased"] = erased.strongest()
        results |= with_chance(figures, name)
    return results


def with_chance(figures: Mapping[str, tuple[float, np.ndarray]], attribute: str) -> dict[str, float]:
    """Give the figures of an attribute and their chance levels by key, from values by name with their permutations."""
    results: dict[str, float] = {}
    for figure, (value, permuted) in figures.items():
        key = MetricKey(figure, group=attribute)
        results[str(key)] = value
        results |= {str(key.of(part)): number for part, number in level(value, permuted).items()}
    return results


@dataclass(frozen=True)
class Attack:
    """What fresh attackers make of held-out users: by attacker, their classes `[T]` and scores of each class `[T, C]`.

    An attacker that could not be fitted is left out.
    """

    found: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def on(cls, representations: np.ndarray, codes: np.ndarray, held_out: np.ndarray, seed: int) -> Attack:
        """Fit the attackers; see `leakage_auc`."""
        representations, codes, held_out = _checked(representations, codes, held_out)
        classes, counts = np.unique(codes[(codes >= 0) & ~held_out], return_counts=True)
        # A group with a single user cannot be split into the MLP's training and validation parts.
        classes = classes[counts > 1]
        fit, test = np.isin(codes, classes) & ~held_out, (codes >= 0) & held_out
        if len(classes) < 2 or not test.any():
            return cls({})
        found = {}
        for name, attacker in _attackers(int(fit.sum()), len(classes), seed).items():
            found[name] = _held_out_scores(attacker, representations, codes, fit, test)
        found["within"] = _within_scores(representations[test], codes[test], seed)
        return cls({name: scores for name, scores in found.items() if scores is not None})

    def of(self, attacker: str) -> tuple[float, np.ndarray]:
        """Give an attacker's AUC, and `[P]` those under permutations of the held-out users' labels."""
        from scipy.stats import rankdata

        if attacker not in self.found:
            return np.nan, np.full(PERMUTATIONS, np.nan)
        labels, scores = self.found[attacker]
        ranks = rankdata(scores, axis=0)  # [T, C]
        permuted = [_auc(block, ranks) for block in permutations(labels)]
        return float(_auc(labels[None], ranks)[0]), np.concatenate(permuted)

    def strongest(self) -> tuple[float, np.ndarray]:
        """Give the largest AUC of all attackers, and under each permutation the largest of all."""
        values = [self.of(name) for name in ATTACKERS]
        return float(np.fmax.reduce([value for value, _ in values])), np.fmax.reduce([auc for _, auc in values])


def _auc(labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Compute the AUC, mean over classes of one-vs-rest, of ranked scores `[T, C]` for classes `labels [p, T]`: `[p]`.

    Class c is that of column c; classes that nobody or everybody has are left out. By Mann and Whitney's U.
    """
    values = []
    for code in range(ranks.shape[1]):
        member = labels == code  # [p, T]
        count = member.sum(axis=1)
        pairs = count * (len(ranks) - count)
        above = member @ ranks[:, code] - count * (count + 1) / 2
        values.append(over(above, pairs))
    return means_defined(values, labels.shape[:1])


def leakage_auc(
    representations: np.ndarray, codes: np.ndarray, held_out: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """Measure how well fresh attackers read `codes [U]` (-1 unknown) off `representations [U, D]`.

    Three attackers:
    - `linear`, a standardised logistic regression, and `mlp`, a small MLP, both class-balanced: fitted on the known
      users outside `held_out [U]`, scored by the AUC of their probabilities on the known users inside it (AFRL's
      attacks; Zhu et al., SIGIR 2024).
    - `within`, a logistic regression cross-validated among the held-out users alone. Training may hide the attribute
      of just those users whose attribute it saw; attackers fitted on them then learn nothing about other users.

    Returns these and `auc`, the largest of them. With more than two groups an AUC is the mean of one-vs-rest over the
    groups in both sets. 0.5 is chance, and that of the largest of three is a little more (`leakage` gives it); an AUC
    below it is kept as it is; NaN where fewer than two groups can be told apart.
    """
    attack = Attack.on(representations, codes, held_out, seed)
    return {name: attack.of(name)[0] for name in ATTACKERS} | {"auc": attack.strongest()[0]}


def _within_scores(vectors: np.ndarray, codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Cross-validate a strongly regularised logistic regression; None with a group smaller than the number of folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(codes, return_counts=True)
    classes = classes[counts >= WITHIN_FOLDS]
    if len(classes) < 2:
        return None
    kept = np.isin(codes, classes)
    attacker = make_pipeline(
        StandardScaler(), LogisticRegression(C=WITHIN_PENALTY, class_weight="balanced", max_iter=2000)
    )
    folds = StratifiedKFold(WITHIN_FOLDS, shuffle=True, random_state=seed)
    probabilities = cross_val_predict(attacker, vectors[kept], codes[kept], cv=folds, method="predict_proba")
    return np.searchsorted(classes, codes[kept]), probabilities


def linear_erasure(representations: np.ndarray, codes: np.ndarray, fit_mask: np.ndarray) -> np.ndarray:
    """Erase what is linearly readable of `codes [U]` (-1 unknown) from `representations [U, D]`: `[U, D]`.

    Least-squares concept erasure (LEACE; Belrose et al., NeurIPS 2023, section 4): whiten, project onto the
    complement of the cross-covariance with the attribute, undo the whitening. The projection is fitted on the known
    users of `fit_mask [U]`, whose group means are equal afterwards, and applied to every user. With fewer than two
    groups nothing is erased.
    """
    vectors, codes, fit_mask = _checked(representations, codes, fit_mask)
    fit = fit_mask & (codes >= 0)
    if not fit.any():
        return vectors.copy()
    mean = vectors[fit].mean(axis=0)
    centred = vectors[fit] - mean  # [F, D]
    groups = (codes[fit, None] == np.unique(codes[fit])).astype(np.float64)  # [F, G]
    groups -= groups.mean(axis=0)
    variance, basis = np.linalg.eigh(centred.T @ centred / len(centred))
    support = variance > variance.max() * len(variance) * np.finfo(np.float64).eps
    basis, deviation = basis[:, support], np.sqrt(variance[support])
    whitened_cross = (centred @ basis / deviation).T @ groups / len(centred)  # [rank, G]
    directions, strength, _ = np.linalg.svd(whitened_cross, full_matrices=False)
    directions = directions[:, strength > DIRECTION_TOLERANCE]  # [rank, k], k < G
    readable = ((vectors - mean) @ basis / deviation) @ directions  # [U, k]
    return vectors - readable @ (directions.T * deviation) @ basis.T


def _checked(vectors: np.ndarray, codes: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vectors, codes, mask = np.asarray(vectors, dtype=np.float64), np.asarray(codes), np.asarray(mask)
    if vectors.ndim != 2 or not len(vectors) == len(codes) == len(mask):
        raise ValueError(
            f"representations {vectors.shape}, codes {codes.shape} and mask {mask.shape} must be [U, D], [U] and [U]"
        )
    if mask.dtype != bool:
        raise ValueError(f"the mask of users is {mask.dtype}; pass bool [U], not user ids")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"the representation of user {row} is not finite; the model that made it has diverged")
    return vectors, codes, mask


def _attackers(num_users: int, num_classes: int, seed: int) -> dict:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    mlp = MLPClassifier(
        (HIDDEN_WIDTH,),
        early_stopping=True,
        # The validation part of a few users must still hold one of each group.
        validation_fraction=max(VALIDATION_FRACTION, num_classes / num_users),
        max_iter=500,
        random_state=seed,
    )
    linear = LogisticRegression(max_iter=2000)
    return {"linear": make_pipeline(StandardScaler(), linear), "mlp": make_pipeline(StandardScaler(), mlp)}


def _held_out_scores(attacker, vectors, codes, fit, test) -> tuple[np.ndarray, np.ndarray]:
    """Fit an attacker and score the held-out users: their classes `[T]` (-1: not among the fitted) and `[T, C]`."""
    from sklearn.utils.class_weight import compute_sample_weight

    final_step = attacker.steps[-1][0]
    weights = compute_sample_weight("balanced", codes[fit])
    attacker.fit(vectors[fit], codes[fit], **{f"{final_step}__sample_weight": weights})
    is_class = codes[test, None] == attacker.classes_  # [T, C]
    labels = np.where(is_class.any(axis=1), is_class.argmax(axis=1), -1)
    return labels, attacker.predict_proba(vectors[test])
