"""Cofair's attacker (Chen, Chen & Zhao, WWW companion 2026): a network that reads the group off vectors (Decision 59).

Its gradients are written out, in NumPy: the batches are so small that a step by autograd takes over four times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from scipy.special import expit, softmax
from threadpoolctl import threadpool_limits

from data.structs import Group
from fairness_utils import means_defined, over
from model.evaluation.chance import PERMUTATIONS, permutations
from model.evaluation.probes import Attack, leakage, with_chance

# the published attacker's
SLOPE, DROPOUT = np.float32(0.2), 0.2
BATCH_SIZE, HARD_EPOCHS, LEARNING_RATE, WEIGHT_DECAY = 128, 500, 1e-3, 1e-4
# those of the one that Adam trains; on MovieLens-1M its AUC moves by .005 at most from epoch 50 to 150
EPOCHS, BETAS, EPSILON = 100, (0.9, 0.999), 1e-8

# changes the weights that it was made for by their gradients
Step = Callable[[Sequence[np.ndarray]], None]


def cofair_leakage(
    vectors: np.ndarray, groups: Mapping[str, Group], held_out: np.ndarray, seed: int
) -> dict[str, float]:
    """Measure what `leakage` does, and what Cofair's attacker reads of every attribute in `vectors [U, D]`.

    The attacker is a new network with a hidden layer half as wide as the vectors, trained on the known users outside
    `held_out [U]` and judged on those inside it:

    - `leakage_auc_hard/gender`, as published: SGD for 500 epochs; after each the AUC a of the predicted groups (not of
      probabilities), or 1 - a where that is more; the largest over the epochs.
    - `leakage_auc_discriminator/gender`: Adam, and the AUC of the probabilities after its last epoch.

    Each has its chance level, which is above 0.5 for the first, as it is the largest of many. With more than two groups
    (ours) an AUC is the mean of one-vs-rest; with fewer than two on either side it is NaN.
    """
    results = leakage(vectors, groups, held_out, seed)
    for name, group in groups.items():
        results |= with_chance(attack(vectors, group.codes, held_out, seed), name)
    return results


def attack(
    vectors: np.ndarray, codes: np.ndarray, held_out: np.ndarray, seed: int
) -> dict[str, tuple[float, np.ndarray]]:
    """Attack `codes [U]` (-1 unknown): the AUCs of `cofair_leakage`, each with `[P]` those under permuted labels."""
    fit, test = (codes >= 0) & ~held_out, (codes >= 0) & held_out
    classes = np.unique(codes[fit])
    names = ("leakage_auc_hard", "leakage_auc_discriminator")
    if min(len(classes), len(np.unique(codes[test]))) < 2:
        return dict.fromkeys(names, (np.nan, np.full(PERMUTATIONS, np.nan)))
    # of the users to test -1 is a group that no user to fit is in
    labels = np.where(np.isin(codes, classes), np.searchsorted(classes, codes), -1)
    problem = vectors[fit], labels[fit], vectors[test]
    # products as small as these are slower on many threads
    with threadpool_limits(1, "blas"):
        predicted = np.stack([logits.argmax(1) for logits in trained(*problem, descent, HARD_EPOCHS, seed)])  # [E, T]
        *_, logits = trained(*problem, adam, EPOCHS, seed)
    hard = [hard_auc(block, predicted) for block in (labels[None, test], *permutations(labels[test]))]
    soft = Attack({"": (labels[test], softmax(logits, axis=1))}).of("")
    return dict(zip(names, ((float(hard[0][0]), np.concatenate(hard[1:])), soft), strict=True))


def hard_auc(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute the largest AUC, or 1 - AUC, of classes `predicted [E, T]` over E epochs, for each of `labels [p, T]`.

    The AUC of a class's 0/1 predictions is the mean of the shares of its users and of others that are told rightly.
    Result `[p]`; classes that nobody or everybody has are left out, NaN where none is left.
    """
    values = []
    for code in range(max(labels.max(), predicted.max()) + 1):
        # float32 products are exact for counts below 2^24
        member, chosen = ((codes == code).astype(np.float32) for codes in (labels, predicted))
        count = member.sum(axis=1, keepdims=True)  # [p, 1]
        right = member @ chosen.T  # [p, E]
        wrong = chosen.sum(axis=1) - right
        values.append((1 + over(right, count) - over(wrong, labels.shape[1] - count)) / 2)
    auc = means_defined(values, (len(labels), len(predicted)))
    return np.maximum(auc, 1 - auc).max(axis=1)


def trained(
    vectors: np.ndarray,
    labels: np.ndarray,
    others: np.ndarray,
    optimiser: Callable[[list[np.ndarray]], Step],
    epochs: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Train the network to read `labels [N]` (0 to G - 1) off `vectors [N, D]`; yield logits of `others` by epoch.

    Those are `[T, G]`; with two groups the first's is 0.
    """
    generator = np.random.default_rng(seed)
    groups = int(labels.max()) + 1
    target = (labels[:, None] == np.arange(groups)).astype(np.float32)
    target = target[:, 1:] if groups == 2 else target  # [N, C]
    inputs, others = (np.column_stack([part, np.ones(len(part))]).astype(np.float32) for part in (vectors, others))
    sizes = vectors.shape[1], max(1, vectors.shape[1] // 2), target.shape[1]
    # as torch.nn.Linear begins; a layer's last row are its biases
    weights = [
        (generator.uniform(-1, 1, (ins + 1, outs)) / np.sqrt(ins)).astype(np.float32) for ins, outs in pairwise(sizes)
    ]
    step = optimiser(weights)
    for _ in range(epochs):
        order = generator.permutation(len(inputs))
        kept = generator.random((len(inputs), sizes[1]), dtype=np.float32) >= DROPOUT
        rows = inputs[order], target[order], kept * np.float32(1 / (1 - DROPOUT))
        for start in range(0, len(inputs), BATCH_SIZE):
            step(gradients(weights, *(part[start : start + BATCH_SIZE] for part in rows)))
        logits = forward(weights, others, np.float32(1))[-1]
        yield np.column_stack([np.zeros(len(logits)), logits]) if groups == 2 else logits


def forward(
    weights: Sequence[np.ndarray], inputs: np.ndarray, kept: np.ndarray | np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the hidden layer `[B, H + 1]`, its slopes `[B, H]` and the logits `[B, C]` of `inputs [B, D + 1]`.

    The last column of inputs and hidden layer is 1, for the biases. `kept [B, H]` is what dropout multiplies by.
    """
    before = inputs @ weights[0]
    slope = np.where(before > 0, kept, SLOPE * kept)
    hidden = np.concatenate([before * slope, inputs[:, -1:]], axis=1)
    return hidden, slope, hidden @ weights[1]


def gradients(
    weights: Sequence[np.ndarray], inputs: np.ndarray, target: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradients of the mean cross-entropy of `target [B, C]`, one for each of `weights`."""
    hidden, slope, logits = forward(weights, inputs, kept)
    probability = expit(logits) if logits.shape[1] == 1 else softmax(logits, axis=1)
    error = (probability - target) / len(inputs)  # [B, C]
    return inputs.T @ (error @ weights[1][:-1].T * slope), hidden.T @ error


def descent(weights: list[np.ndarray]) -> Step:
    """Make the step of plain SGD, which adds `WEIGHT_DECAY` times a weight to its gradient."""

    def step(gradients: Sequence[np.ndarray]) -> None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= LEARNING_RATE * (gradient + WEIGHT_DECAY * weight)

    return step


def adam(weights: list[np.ndarray]) -> Step:
    """Make the step of Adam without weight decay (Kingma and Ba, ICLR 2015)."""
    means, squares = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
    number = 0

    def step(gradients: Sequence[np.ndarray]) -> None:
        nonlocal number
        number += 1
        corrections = [1 - beta**number for beta in BETAS]
        for weight, mean, square, gradient in zip(weights, means, squares, gradients, strict=True):
            mean += (1 - BETAS[0]) * (gradient - mean)
            square += (1 - BETAS[1]) * (gradient * gradient - square)
            weight -= LEARNING_RATE / corrections[0] * mean / (np.sqrt(square / corrections[1]) + EPSILON)

    return step
