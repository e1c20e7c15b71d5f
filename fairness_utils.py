"""The paper's own core, on arrays and tensors. In this order:

- Sampling: log weights from which histories are drawn (`catalogue_log_weights`, `fairness_history_weights`).
- Adversaries: reversed gradients (`reverse_gradient`, `ramp`), trained discriminators (`ConditionalAdversary`) and the
  linear one in closed form (`SolvedDiscriminator`).
- Metrics: exposure of lists, and their parity between user groups.
- Re-ranking: lists that share exposure between item groups (`rerank`).

The file is long because the core stays together under the name that the published program gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from scipy.special import rel_entr
from torch import nn
from torch.nn import functional as F

from data.structs import Group, Histories, HistoryWeights, ItemLists

# --- Sampling ---


def catalogue_log_weights(histories: Histories, degree: np.ndarray, temperature: float) -> np.ndarray:
    """Compute BUHS's log p_cat(i|u) = (1/d_i - max_j 1/d_j) / T, unnormalised, per history entry `[E]`.

    `degree [I]` counts train interactions; an item of degree 0 counts as one of degree 1, the least popular.
    `temperature` inf is uniform. Source: Balasubramanian et al., RecSys 2024.
    """
    if not temperature > 0:
        raise ValueError(f"sampling temperature {temperature} is not allowed; use a positive number (inf: uniform)")
    inverse = 1.0 / np.maximum(degree, 1)[histories.item]  # [E]
    starts, lengths = _segments(histories)
    return (inverse - np.repeat(np.maximum.reduceat(inverse, starts), lengths)) / temperature


def group_parity_log_weights(
    histories: Histories, group: Group, num_items: int, kappa: float | None = None, counts_from: Histories | None = None
) -> np.ndarray:
    """Compute log p_grp(i|u) = log P_mean(i) - log P(i|g(u)), unnormalised, per history entry `[E]`.

    P(i|g) = (n_gi + kappa/I) / (sum_j n_gj + kappa), where n_gi are the interactions of group g with item i in
    `counts_from` (default: `histories`) and kappa is `num_items` by default; P_mean averages over groups with members.
    These are importance weights: drawn with them, the histories of every group have items in proportion to P_mean. A
    user of unknown group gets 0 (uniform).
    """
    known = group.codes[histories.owner] >= 0
    weights = np.zeros(len(histories.item))
    if known.any():
        # P(i|g): [G, I]
        share, _ = _smoothed_shares(histories if counts_from is None else counts_from, group, num_items, kappa)
        log_ratio = np.log(share[group.counts() > 0].mean(axis=0)) - np.log(share)
        weights[known] = log_ratio[group.codes[histories.owner[known]], histories.item[known]]
    return weights


def smoothing_share(train: Histories, group: Group, num_items: int, kappa: float | None = None) -> np.ndarray:
    """Compute the share of each group's P(.|g) that is smoothing, kappa / (sum_j n_gj + kappa): `[G]`."""
    return _smoothed_shares(train, group, num_items, kappa)[1]


def fairness_history_weights(
    histories: Histories,
    degree: np.ndarray,
    group: Group,
    alpha: float,
    temperature: float,
    kappa: float | None = None,
    counts_from: Histories | None = None,
) -> HistoryWeights:
    """Mix catalogue parity (share `alpha`) and group parity (1 - `alpha`); a component of share 0 is left out.

    `histories` are those to draw from, `counts_from` (default: the same) the train interactions of each group.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"fairness_weight {alpha} is not allowed; use a number in [0, 1] (1: catalogue parity only)")
    mix, components = [], []
    if alpha > 0:
        mix.append(alpha)
        components.append(catalogue_log_weights(histories, degree, temperature))
    if alpha < 1:
        mix.append(1 - alpha)
        components.append(group_parity_log_weights(histories, group, len(degree), kappa, counts_from))
    return HistoryWeights(np.log(mix), np.stack(components))


def expected_group_distributions(
    histories: Histories, weights: HistoryWeights, group: Group, num_items: int
) -> np.ndarray:
    """Compute each group's expected item distribution of a first draw: `[G, I]`, every user counting the same.

    Users with an empty history are left out; a group without any other user is NaN.
    """
    starts, lengths = _segments(histories)
    peak = np.maximum.reduceat(weights.log_weights, starts, axis=1)
    mass = np.exp(weights.log_weights - np.repeat(peak, lengths, axis=1))
    mass /= np.repeat(np.add.reduceat(mass, starts, axis=1), lengths, axis=1)
    # mass [components, E], mixed to [E], summed to [G, I]
    total = _group_item_counts(histories, group, num_items, np.exp(weights.log_mix) @ mass)
    members = np.bincount(group.codes[(group.codes >= 0) & (histories.lengths > 0)], minlength=group.num_groups)
    return np.divide(total, members[:, None], out=np.full_like(total, np.nan), where=members[:, None] > 0)


def js_divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Compute the Jensen-Shannon divergence (natural log, not its root; 0..ln 2) of distributions `[..., I]`."""
    middle = (p + q) / 2
    return (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2


def _segments(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    # reduceat would read an empty segment as the next one's first entry: only filled ones are named
    filled = histories.lengths > 0
    return histories.indptr[:-1][filled], histories.lengths[filled]


def _smoothed_shares(
    train: Histories, group: Group, num_items: int, kappa: float | None
) -> tuple[np.ndarray, np.ndarray]:
    if kappa is not None and not 0 < kappa < np.inf:
        raise ValueError(f"smoothing kappa {kappa} is not allowed; use a positive number or None (one per item)")
    kappa = num_items if kappa is None else kappa
    counts = _group_item_counts(train, group, num_items)
    total = counts.sum(axis=1, keepdims=True) + kappa
    return (counts + kappa / num_items) / total, kappa / total[:, 0]


def _group_item_counts(
    histories: Histories, group: Group, num_items: int, entry_mass: np.ndarray | None = None
) -> np.ndarray:
    if len(group.codes) != len(histories.lengths):
        raise ValueError(f"group {group.name!r} has {len(group.codes)} codes; histories need {len(histories.lengths)}")
    if len(histories.item) and histories.item.max() >= num_items:
        raise ValueError(f"history item {histories.item.max()} is outside the catalogue of {num_items}; pass its size")
    codes = group.codes[histories.owner]
    known = codes >= 0
    mass = None if entry_mass is None else entry_mass[known]
    flat = np.bincount(codes[known] * num_items + histories.item[known], mass, minlength=group.num_groups * num_items)
    return flat.reshape(group.num_groups, num_items).astype(np.float64)


# --- Adversaries ---


# penalty of the closed-form discriminator, relative to the mean variance of its inputs
RIDGE = 1e-3


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, scale):
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * -ctx.scale, None


def reverse_gradient(value: torch.Tensor, scale: float) -> torch.Tensor:
    """Give `value` unchanged; on the way back its gradient is multiplied by -`scale` (Ganin & Lempitsky, ICML 2015)."""
    return _GradientReversal.apply(value, scale)


def ramp(step: int, total_steps: int, fraction: float) -> float:
    """Compute the strength at `step`: it rises linearly from 0 to 1 over the first `fraction` of `total_steps`."""
    length = fraction * total_steps
    return 1.0 if step >= length else step / length


def class_label_weights(counts: np.ndarray) -> torch.Tensor:
    """Weigh every (class, label) cell of `counts [G, 2]` so that all have the same total: `[G, 2]` float32.

    A cell without rows has weight 0 (Decision 16).
    """
    total, filled = counts.sum(), np.count_nonzero(counts)
    weights = np.divide(total / max(filled, 1), counts, out=np.zeros(counts.shape), where=counts > 0)
    return torch.from_numpy(weights).float()


class _GroupDiscriminator(nn.Module):
    """What discriminators share: how rows are weighed, and layer-normalised input with a reversed gradient."""

    def __init__(self, class_label_weight: torch.Tensor):
        """`class_label_weight [G, 2]` weighs the loss of each class under each interaction label."""
        super().__init__()
        self.num_classes = len(class_label_weight)
        self.register_buffer("weight", class_label_weight, persistent=False)

    def mass(self, label: torch.Tensor, target: torch.Tensor, row_weight: torch.Tensor | None = None) -> torch.Tensor:
        """Sum the weights of rows: what a `loss` divides by."""
        return self._weights(label, target, row_weight).sum()

    def _weights(self, label: torch.Tensor, target: torch.Tensor, row_weight: torch.Tensor | None) -> torch.Tensor:
        weight = self.weight[target.clamp(min=0), label] * (target >= 0)
        return weight if row_weight is None else weight * row_weight

    def _reversed(self, representation: torch.Tensor, scale: float) -> torch.Tensor:
        value = reverse_gradient(representation, scale) if scale else representation.detach()
        return F.layer_norm(value, value.shape[1:])


class ConditionalAdversary(_GroupDiscriminator):
    """Discriminators `D([GRL(z); e_y]) -> class`: two-layer MLPs of several widths on layer-normalised input.

    Decision 15: layer normalisation leaves no escape by scale; several widths, one of them re-initialised in turn
    (`reinitialise`), keep the encoder from dodging a single discriminator. Parameters come from `seed` alone.
    """

    def __init__(self, inputs: int, class_label_weight: torch.Tensor, widths: tuple[int, ...], seed: int):
        """`class_label_weight [G, 2]` weighs the loss of each class under each interaction label."""
        super().__init__(class_label_weight)
        self.inputs, self.seed, self.label_dim = inputs, seed, 8
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.label_embedding = nn.Embedding(2, self.label_dim)
            self.discriminators = nn.ModuleList([self._build(width) for width in widths])

    def _build(self, width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.inputs + self.label_dim, width), nn.GELU(), nn.Linear(width, self.num_classes)
        )

    @torch.no_grad()
    def reinitialise(self, turn: int) -> int:
        """Give one discriminator, the next in turn, fresh parameters in place; the draw depends on `turn` and the seed
        alone.

        Gives the position of that discriminator.
        """
        index = turn % len(self.discriminators)
        old = self.discriminators[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, turn]).generate_state(1)[0]))
            fresh = self._build(old[0].out_features)
        for target, source in zip(old.parameters(), fresh.parameters(), strict=True):
            target.copy_(source)
        return index

    def loss(
        self,
        representation: torch.Tensor,
        label: torch.Tensor,
        target: torch.Tensor,
        scale: float,
        mass: torch.Tensor | None = None,
        row_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the weighted cross-entropy of `target [R]` (-1 unknown: weight 0), summed over the discriminators.

        `representation [R, D]` gets the reversed gradient of the discriminators' mean times `scale` (0: it is detached
        and gets none; Decision 14); each discriminator gets its own loss in full. `label [R]` is 1 for a positive and 0
        for a negative, `row_weight [R]` weighs rows (None: all the same). `mass` is the total weight of all processes'
        rows, where these are only some of them (None: these are all). Without known rows the loss is exactly 0.
        """
        value = self._reversed(representation, scale / len(self.discriminators))
        value = torch.cat([value, self.label_embedding(label)], dim=1)
        weight = self._weights(label, target, row_weight)
        target = target.clamp(min=0)
        normaliser = _at_least_tiny(weight.sum() if mass is None else mass)
        total = value.new_zeros(())
        for discriminator in self.discriminators:
            entropy = F.cross_entropy(discriminator(value), target, reduction="none")
            total = total + (entropy * weight).sum() / normaliser
        return total


class SolvedDiscriminator(_GroupDiscriminator):
    """A linear discriminator on layer-normalised input that is solved in closed form at every step (Decision 15).

    So no encoder can run away from it. It has no parameters to train: `solve` finds the best one for the rows of a
    step, `loss` judges it.
    """

    def _labels(self, label: torch.Tensor) -> torch.Tensor:
        return F.one_hot(label, 2).to(self.weight.dtype)

    def _classes(self, target: torch.Tensor) -> torch.Tensor:
        return F.one_hot(target.clamp(min=0), self.num_classes).to(self.weight.dtype)

    @torch.no_grad()
    def solve(
        self,
        representation: torch.Tensor,
        label: torch.Tensor,
        target: torch.Tensor,
        row_weight: torch.Tensor | None = None,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda part: part,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve for the linear least-squares discriminator of the rows: weights [D, G], offsets [2, G].

        An offset belongs to a label. The weights are 0 exactly where no linear attacker finds anything (Belrose et al.,
        NeurIPS 2023, theorem 3.1) and Fisher's direction for two classes. `total` adds sums over a part of the rows up
        to those over all. Without known rows everything is 0.
        """
        inputs = representation.shape[1]
        weight = self._weights(label, target, row_weight)[:, None]
        labels, value = self._labels(label), self._reversed(representation, 0.0)
        rows = torch.cat([value, self._classes(target)], dim=1)  # [R, D + G]
        sums = total((labels * weight).T @ torch.cat([rows, torch.ones_like(weight)], dim=1))  # [2, D + G + 1]
        means = sums[:, :-1] / _at_least_tiny(sums[:, -1:])
        # centred first: the difference of large moments would drown a small variance in rounding
        rows = rows - labels @ means
        moments = total((rows[:, :inputs] * weight).T @ rows).double()  # [D, D + G]
        covariance, cross = moments[:, :inputs], moments[:, inputs:]
        strength = RIDGE * torch.diagonal(covariance).mean() + torch.finfo(torch.float32).tiny
        # cholesky_ex does not make the host wait, and the ridge keeps the matrix positive
        factor, _ = torch.linalg.cholesky_ex(covariance + torch.diag_embed(strength.expand(inputs)))
        solution = torch.cholesky_solve(cross, factor).to(rows.dtype)
        return solution, means[:, inputs:] - means[:, :inputs] @ solution

    def loss(
        self,
        representation: torch.Tensor,
        label: torch.Tensor,
        target: torch.Tensor,
        scale: float,
        solution: tuple[torch.Tensor, torch.Tensor],
        mass: torch.Tensor | None = None,
        row_weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the squared error of the discriminator that `solve` found, over the error without any input: 1 means
        that it finds nothing.

        Arguments as for `ConditionalAdversary.loss`; `representation [R, D]` gets the reversed gradient times `scale`.
        """
        weights, offsets = solution
        weight = self._weights(label, target, row_weight)
        error = self._classes(target) - self._labels(label) @ offsets - self._reversed(representation, scale) @ weights
        normaliser = _at_least_tiny(weight.sum() if mass is None else mass) * (1 - 1 / self.num_classes)
        return (error.square().sum(1) * weight).sum() / normaliser


def _at_least_tiny(value: torch.Tensor) -> torch.Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny)


# --- Metrics ---


def mean_defined(values: np.ndarray) -> float:
    """Average the entries of `values` that are not NaN; NaN where there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def position_weights(k: int) -> np.ndarray:
    """Weigh positions j = 1..k by 1 / log2(j + 1): `[k]` float64."""
    return 1 / np.log2(np.arange(2, k + 2))


def exposure(topk: np.ndarray, num_items: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Sum the position weights `[K]` (None: count) at which each item is shown in `topk [T, K]`: `[I]` float64."""
    shown = topk >= 0
    weights = np.ones(topk.shape[1]) if weights is None else weights
    spread = np.broadcast_to(weights, topk.shape)[shown]
    return np.bincount(topk[shown], weights=spread, minlength=num_items).astype(np.float64)


def gini(values: np.ndarray) -> float:
    """Measure inequality over all of `values [I]`, zeros included: 0 to (I-1)/I, NaN where they sum to 0."""
    count, total = len(values), values.sum()
    if total == 0:
        return float("nan")
    return float(np.dot(2 * np.arange(1, count + 1) - count - 1, np.sort(values)) / (count * total))


def coverage(counts: np.ndarray) -> float:
    """Give the share of the catalogue that is shown at least once, from `counts [I]`."""
    return mean_defined((counts > 0).astype(np.float64))


def list_means(topk: np.ndarray, item_values: np.ndarray) -> np.ndarray:
    """Average `item_values [I]` over each list of `topk [T, K]`: `[T]`, NaN where the list is empty."""
    shown = topk >= 0
    lengths = shown.sum(axis=1)
    totals = np.where(shown, item_values[topk], 0.0).sum(axis=1)
    return np.divide(totals, lengths, out=np.full(len(topk), np.nan), where=lengths > 0)


def exposure_share_gap(exposures: np.ndarray, tail: np.ndarray, merit: np.ndarray | None = None) -> float:
    """Subtract the tail's due share from its share of `exposures [I]`: below 0 the tail is under-exposed.

    Due is its share of the catalogue or, proportionally, of `merit [I]` (train interactions). NaN where either is 0.
    """
    due = np.ones(len(tail)) if merit is None else merit
    if exposures.sum() == 0 or due.sum() == 0:
        return float("nan")
    return float(exposures[tail].sum() / exposures.sum() - due[tail].sum() / due.sum())


def disparate_treatment_ratio(exposures: np.ndarray, tail: np.ndarray, merit: np.ndarray) -> float:
    """Divide the tail's exposure per unit of merit by the head's: below 1 the tail is under-exposed, 1 is ideal.

    Singh and Joachims (KDD 2018), DTR: each group's mean exposure over its mean merit; with train interactions as
    `merit [I]`, exposure is due to popularity. NaN where either group's merit or the head's exposure is 0.
    """
    if merit[tail].sum() == 0 or merit[~tail].sum() == 0 or exposures[~tail].sum() == 0:
        return float("nan")
    # A group's size divides both its exposure and its merit, so sums stand for the means.
    return float(exposures[tail].sum() / merit[tail].sum() * merit[~tail].sum() / exposures[~tail].sum())


def keep_hits(topk: np.ndarray, relevant: ItemLists, num_items: int) -> np.ndarray:
    """Replace by -1 each entry of `topk [T, K]` that is not in that row's list of relevant items."""
    rows = np.arange(len(topk))[:, None]
    hits = np.isin(rows * num_items + topk, relevant.owner * num_items + relevant.item)
    # Padding may match the key of another row's last item, and stays -1 either way.
    return np.where(hits, topk, -1)


def count_by_group(topk: np.ndarray, codes: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Count how often each group of `codes [T]` is shown each item of `topk [T, K]`, `[G, I]`, and its users, `[G]`.

    Users of unknown group (-1) and groups without users are left out.
    """
    known = codes >= 0
    _, rows = np.unique(codes[known], return_inverse=True)
    sizes = np.bincount(rows)
    lists = topk[known]
    keys = (rows[:, None] * num_items + lists)[lists >= 0]
    return np.bincount(keys, minlength=len(sizes) * num_items).reshape(len(sizes), num_items), sizes


def _mean_over_pairs(counts: np.ndarray, distance: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Average a `distance` of two groups over all pairs of `counts [..., G, I]`; undefined ones are left out."""
    pairs = combinations(np.moveaxis(counts, -2, 0), 2)
    return means_defined([distance(first, second) for first, second in pairs], counts.shape[:-2])


def means_defined(values: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Average arrays of `shape` place by place, NaN left out: NaN where nothing is defined."""
    stacked = np.array(values, dtype=np.float64).reshape(-1, *shape)  # [pairs, ...]
    return over(np.nansum(stacked, axis=0), np.sum(~np.isnan(stacked), axis=0))


def over(total: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """Divide; NaN where the divisor is 0."""
    return np.divide(total, divisor, out=np.full(np.shape(total), np.nan), where=np.asarray(divisor != 0))


def relative_difference(counts: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """Average |n0 - n1| / (n0 + n1) over the items shown to either group: 0 (parity) to 1, `[...]`.

    `counts [..., G, I]` are how often each group is shown each item, leading axes alternatives such as permutations of
    the groups; `sizes [..., G]` divides them (None: raw counts). More than two groups: the mean over pairs, a pair
    shown nothing being undefined and left out. NaN where no pair is defined. Chen et al. (WWW 2023), DP@K, over covered
    items; EO@K on counts of hits.
    """

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        both, part = first + second, np.subtract(first, second, dtype=np.float64)  # [..., I]
        shown = np.count_nonzero(both, axis=-1)
        np.abs(part, out=part)
        # an item that nobody is shown is 0 over something, and not counted
        part /= np.maximum(both, np.finfo(np.float64).tiny)
        return over(part.sum(axis=-1), shown)

    return _mean_over_pairs(counts if sizes is None else counts / sizes[..., None], distance)


# a Jensen-Shannon divergence below this is rounding
ROUNDING = 1e-14


def js_between(counts: np.ndarray) -> np.ndarray:
    """Compute the Jensen-Shannon distance of the groups' distributions over items: 0 to sqrt(ln 2), `[...]`.

    Cofair, DP@K; EOpp@K on counts of hits.

    Arguments and pairs as in `relative_difference`, but a pair is already undefined where one of the two is shown
    nothing.
    """

    totals = counts.sum(axis=-1, keepdims=True)
    shares = over(counts, totals)
    # JS = H((p + q) / 2) - (H(p) + H(q)) / 2 takes one logarithm an item and pair
    entropy = np.where(totals[..., 0] > 0, _entropy(shares), np.nan)  # [..., G]
    entropies = iter(combinations(np.moveaxis(entropy, -1, 0), 2))

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        divergence = _entropy((first + second) / 2) - np.mean(next(entropies), axis=0)
        return np.sqrt(np.where(divergence < ROUNDING, 0 * divergence, divergence))

    return _mean_over_pairs(shares, distance)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Compute the entropy of `shares [..., I]` in nats: `[...]`."""
    return -(shares * np.log(np.maximum(shares, np.finfo(np.float64).tiny))).sum(axis=-1)


def debiased_difference(counts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Estimate the relative difference of two groups' rates without what chance adds: -1 to 1, `[...]`.

    W is the mean number of items that the lists of two users of one group share (mean of both groups), B that of two
    users of different groups. (W - B) / (W + B) is 0 in expectation where lists do not depend on the group, however
    concentrated they are and whatever the sizes: users are compared with others, never with themselves (a U-statistic,
    Hoeffding 1948). Its signed root is |r0 - r1| / (r0 + r1) where that is the same for every item's rates r. A list
    holds an item at most once. Arguments as in `relative_difference`; more than two groups: the mean over pairs before
    the root. NaN where no pair of groups has two users each and shared items (Decision 48).
    """
    shared = counts @ np.swapaxes(counts, -1, -2)  # [..., G, G]: pairs of shows of the same item
    own = np.diagonal(shared, axis1=-2, axis2=-1) - counts.sum(axis=-1)  # [..., G]: without a user's pair with itself
    return signed_root(mean_contrast(own, shared, sizes))


def mean_contrast(own: np.ndarray, shared: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Average (W - B) / (W + B) over pairs of groups, `[...]`; undefined ones are left out.

    `own [..., G]` counts the items that ordered pairs of different users of a group share, `shared [..., G, G]` those
    of users of two groups (its diagonal is not read), and `sizes [..., G]` the groups' users. See
    `debiased_difference`.
    """
    within = over(own, np.broadcast_to(sizes * (sizes - 1.0), own.shape))
    values = []
    for first, second in combinations(range(own.shape[-1]), 2):
        pairs = np.broadcast_to(sizes[..., first] * sizes[..., second], own.shape[:-1])
        mean, between = (within[..., first] + within[..., second]) / 2, over(shared[..., first, second], pairs)
        values.append(over(mean - between, mean + between))
    return means_defined(values, own.shape[:-1])


def signed_root(values: np.ndarray) -> np.ndarray:
    """Take the root of the sizes of `values`, with their signs."""
    return np.sign(values) * np.sqrt(np.abs(values))


# --- Re-ranking ---

# Sums of position weights differ in the last bits with their order; a floor is met to within this much exposure.
EXPOSURE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class RerankResult:
    """Re-ranked pools: `topk`, `scores` `[T, P]` in the new order, `infeasible [T]` users who cannot meet the floor."""

    topk: np.ndarray
    scores: np.ndarray
    infeasible: np.ndarray


def target_shares(item_groups: Group, degree: np.ndarray | None = None) -> np.ndarray:
    """Compute each group's target share of exposure `[G]`: of the catalogue, or of train interactions `degree [I]`."""
    weight = np.ones(len(item_groups.codes)) if degree is None else degree.astype(np.float64)
    known = item_groups.codes >= 0
    return np.bincount(item_groups.codes[known], weight[known], minlength=item_groups.num_groups) / weight.sum()


def rerank(
    topk: np.ndarray,
    scores: np.ndarray,
    item_groups: Group,
    alpha: float,
    exposure_floor: float,
    k: int,
    target: np.ndarray,
    protected: str = "tail",
) -> RerankResult:
    """Fill positions 1..k of each user's pool `topk [T, P]` greedily by relevance and missing group exposure.

    Position j gives the exposure w_j = 1/log2(j+1). Each step takes the item with the largest

        (1-alpha) rel(i) + alpha deficit(g(i)),

    and of equal ones the first in the pool. rel is the score scaled to 0..1 over the user's pool (0 where all are
    equal); deficit = max(0, `target [G]` - the group's share of the exposure given so far), where that share is 0 at
    the first step, and 0 for an item of unknown group.

    The floor: where an item of another group would make it impossible that the `protected` group gets
    `exposure_floor` of w_1 + .. + w_k, the first protected item is taken instead. A user whose pool cannot meet the
    floor is infeasible and gets all protected items first. Below k the rest of the pool keeps its order.

    `scores` must not rise along a list; -1 at the end of a list is padding and stays. Raises ValueError for arguments
    out of range and scores that rise or are not finite. Decision 19.
    """
    _check_arguments(item_groups, alpha, exposure_floor, k, target, protected)
    valid = topk >= 0
    _check_scores(scores, valid)
    rows, pool = topk.shape
    unknown = item_groups.num_groups
    codes = np.where(valid, item_groups.codes[topk], -1)  # [T, P]
    codes[codes < 0] = unknown
    merit = (1 - alpha) * _scaled_relevance(scores, valid)  # [T, P]
    protected_code = item_groups.labels.index(protected)
    is_protected = codes == protected_code
    weight = position_weights(k)
    given = np.concatenate([[0.0], np.cumsum(weight)])  # [k + 1]: exposure of the first j positions
    floor = exposure_floor * given[k] - EXPOSURE_TOLERANCE

    lengths, left = valid.sum(axis=1), is_protected.sum(axis=1)
    infeasible = given[np.minimum(left, k)] < floor
    exposure, deficit = np.zeros((2, rows, unknown + 1))  # [T, G + 1], unknown last
    open_, place = valid.copy(), np.tile(k + np.arange(pool), (rows, 1))
    for step in range(min(k, pool)):
        share = exposure[:, :unknown] / given[step] if step else 0.0
        deficit[:, :unknown] = np.maximum(0, target - share)
        value = merit + alpha * np.take_along_axis(deficit, codes, axis=1)  # [T, P]
        value[~open_] = -np.inf
        pick = value.argmax(axis=1)  # [T]
        # what the protected group could still reach if this step took an item of another group: [T]
        reachable = exposure[:, protected_code] + given[np.minimum(k, step + 1 + left)] - given[step + 1]
        forced = np.flatnonzero((reachable < floor) & (left > 0) & ~is_protected[np.arange(rows), pick])
        # Scores do not rise along the list, so the first open protected item is the best one.
        pick[forced] = (open_[forced] & is_protected[forced]).argmax(axis=1)
        active = np.flatnonzero(lengths > step)
        pick = pick[active]
        place[active, pick] = step
        open_[active, pick] = False
        exposure[active, codes[active, pick]] += weight[step]
        left[active] -= is_protected[active, pick]
    order = place.argsort(axis=1, kind="stable")
    return RerankResult(np.take_along_axis(topk, order, 1), np.take_along_axis(scores, order, 1), infeasible)


def _scaled_relevance(scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
    values = scores.astype(np.float64)
    low = np.where(valid, values, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(valid, values, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    varies = valid & (high > low)
    shift = np.subtract(values, low, out=np.zeros_like(values), where=varies)
    return np.divide(shift, high - low, out=shift, where=varies)


def _check_arguments(
    item_groups: Group, alpha: float, exposure_floor: float, k: int, target: np.ndarray, protected: str
) -> None:
    if not 0 <= alpha <= 1 or not 0 <= exposure_floor <= 1:
        raise ValueError(f"rerank_alpha {alpha}, exposure_floor {exposure_floor}: each must lie in [0, 1]; change it")
    if k < 1:
        raise ValueError(f"re-ranking K {k} is not allowed; use a positive number")
    if protected not in item_groups.labels:
        raise ValueError(
            f"protected group {protected!r} is unknown; groups of {item_groups.name!r}: {item_groups.labels}"
        )
    if np.shape(target) != (item_groups.num_groups,):
        raise ValueError(f"re-ranking target has shape {np.shape(target)}; give one share per {item_groups.labels}")


def _check_scores(scores: np.ndarray, valid: np.ndarray) -> None:
    bad = valid & ~np.isfinite(scores)
    bad[:, 1:] |= valid[:, 1:] & valid[:, :-1] & (scores[:, 1:] > scores[:, :-1])
    if bad.any():
        row = int(bad.any(axis=1).argmax())
        raise ValueError(f"re-ranking: scores of user row {row} are not finite and falling; rank before re-ranking")
