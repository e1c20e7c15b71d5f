"""The leakage probe and the closed-form erasure, on representations whose content is known."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from model.evaluation.probes import held_out_users, leakage_auc, linear_erasure


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def planted(num_users=1500, width=16, share=0.28, shift=3.0, seed=0):
    """Gaussian vectors [U, D] whose first coordinate is moved by `shift` for a `share` of the users."""
    rng = np.random.default_rng(seed)
    codes = (rng.random(num_users) < share).astype(np.int64)
    vectors = rng.normal(size=(num_users, width))
    vectors[:, 0] += shift * codes
    return vectors, codes, held_out_users(codes, 0.2, seed)


def naive_auc(is_positive, scores):
    wins = [(a > b) + (a == b) / 2 for a in scores[is_positive].tolist() for b in scores[~is_positive].tolist()]
    return np.mean(wins)


def naive_linear_auc(vectors, codes, held_out):
    fit, test = (codes >= 0) & ~held_out, (codes >= 0) & held_out
    mean, deviation = vectors[fit].mean(0), vectors[fit].std(0)
    attacker = LogisticRegression(class_weight="balanced", max_iter=5000, tol=1e-8)
    attacker.fit((vectors[fit] - mean) / deviation, codes[fit])
    probabilities = attacker.predict_proba((vectors[test] - mean) / deviation)
    return np.mean([naive_auc(codes[test] == code, probabilities[:, code]) for code in attacker.classes_])


def test_planted_direction_is_found_and_noise_is_not():
    vectors, codes, held_out = planted(shift=6.0)
    assert leakage_auc(vectors, codes, held_out)["auc"] > 0.995
    noise = leakage_auc(*planted(4000, shift=0.0))
    assert all(abs(value - 0.5) < 0.06 for value in noise.values())


def test_imbalanced_attribute_reaches_the_optimal_auc():
    # Two unit Gaussians d apart: AUC = Phi(d / sqrt(2)); d = 1.5 gives 0.8556 whatever the class shares.
    result = leakage_auc(*planted(8000, width=8, shift=1.5))
    assert result["linear"] == pytest.approx(0.8556, abs=0.03)
    assert result["mlp"] == pytest.approx(0.8556, abs=0.03)
    assert result["auc"] == max(result["linear"], result["mlp"], result["within"])


def test_only_the_mlp_sees_an_attribute_of_the_radius():
    vectors, codes, held_out = planted(3000, width=2, share=0.5, shift=0.0)
    vectors *= np.where(codes == 1, 4.0, 1.0)[:, None]
    result = leakage_auc(vectors, codes, held_out)
    assert abs(result["linear"] - 0.5) < 0.08
    assert result["mlp"] > 0.85 and result["auc"] == result["mlp"]


def test_linear_probe_equals_a_naive_twin_with_unknown_users():
    vectors, codes, _ = planted(700, width=5, shift=1.0)
    codes[::7] = -1
    held_out = held_out_users(codes, 0.3, 3)
    assert leakage_auc(vectors, codes, held_out)["linear"] == pytest.approx(
        naive_linear_auc(vectors, codes, held_out), abs=2e-3
    )


def test_several_groups_give_the_mean_of_one_against_the_rest():
    rng = np.random.default_rng(1)
    codes = rng.choice(4, size=900, p=[0.5, 0.3, 0.15, 0.05])
    vectors = rng.normal(size=(900, 6)) + 1.2 * np.eye(6)[codes]
    held_out = held_out_users(codes, 0.3, 1)
    result = leakage_auc(vectors, codes, held_out)
    assert result["linear"] == pytest.approx(naive_linear_auc(vectors, codes, held_out), abs=2e-3)
    assert result["linear"] > 0.7


def test_held_out_attributes_never_reach_the_fit():
    vectors, codes, held_out = planted(800, shift=1.0)
    flipped = np.where(held_out, 1 - codes, codes)
    before, after = leakage_auc(vectors, codes, held_out), leakage_auc(vectors, flipped, held_out)
    for name in ("linear", "mlp"):
        assert after[name] == pytest.approx(1 - before[name], abs=1e-12)
    np.testing.assert_array_equal(
        linear_erasure(vectors, codes, ~held_out), linear_erasure(vectors, flipped, ~held_out)
    )


def test_same_seed_same_numbers():
    first, again, other = (leakage_auc(*planted(300, shift=0.5), seed=seed) for seed in (4, 4, 5))
    assert first == again and first["mlp"] != other["mlp"]


@pytest.mark.parametrize(
    ("fit_codes", "test_codes"),
    [
        ([0] * 20, [0, 1] * 5),
        ([0, 1] * 10, [1] * 10),
        ([-1] * 20, [0, 1] * 5),
        ([0, 1] * 10, []),
        ([0] * 19 + [1], [0, 1]),
    ],
)
def test_not_computable_is_nan(fit_codes, test_codes):
    codes = np.array(fit_codes + test_codes)
    held_out = np.arange(len(codes)) >= len(fit_codes)
    vectors = np.random.default_rng(0).normal(size=(len(codes), 3))
    result = leakage_auc(vectors, codes, held_out)
    assert all(np.isnan(value) for value in result.values()) and list(result) == ["linear", "mlp", "within", "auc"]


def test_groups_missing_on_one_side_and_tiny_groups():
    rng = np.random.default_rng(0)
    # Group 2 is never fitted, group 3 has one user to fit, group 1 is never tested.
    codes = np.array([0] * 30 + [1] * 30 + [3] + [0] * 10 + [2] * 10)
    held_out = np.arange(len(codes)) > 60
    vectors = rng.normal(size=(len(codes), 3))
    vectors[:, 0] += 8 * (codes == 0)
    assert leakage_auc(vectors, codes, held_out)["linear"] == 1.0
    # Few users to fit: the MLP's validation part still needs one of each group.
    for num_groups in (2, 6):
        codes = np.arange(4 * num_groups) % num_groups
        result = leakage_auc(rng.normal(size=(len(codes), 3)), codes, np.arange(len(codes)) >= 2 * num_groups)
        assert np.isfinite(result["mlp"])


def test_constant_and_wrong_inputs():
    codes, held_out = np.arange(100) % 2, np.arange(100) >= 60
    assert leakage_auc(np.ones((100, 4)), codes, held_out)["auc"] == 0.5
    bad = np.zeros((100, 4))
    bad[7, 2] = np.nan
    with pytest.raises(ValueError, match="user 7 is not finite"):
        leakage_auc(bad, codes, held_out)
    with pytest.raises(ValueError, match=r"\[U, D\], \[U\] and \[U\]"):
        leakage_auc(np.zeros((99, 4)), codes, held_out)
    with pytest.raises(ValueError, match="pass bool"):
        linear_erasure(np.zeros((100, 4)), codes, np.arange(100))


def test_erasure_takes_the_linear_probe_to_chance():
    vectors, codes, held_out = planted(4000, shift=3.0)
    codes[::10] = -1
    erased = linear_erasure(vectors, codes, ~held_out)
    assert leakage_auc(vectors, codes, held_out)["linear"] > 0.95
    assert abs(leakage_auc(erased, codes, held_out)["linear"] - 0.5) < 0.06
    fit = ~held_out
    gap = erased[fit & (codes == 1)].mean(0) - erased[fit & (codes == 0)].mean(0)
    np.testing.assert_allclose(gap, 0, atol=1e-12)


def test_erasure_of_one_direction_equals_the_closed_form():
    # One attribute: x - cov(x, z) (w . (x - mean)) / (cov(x, z) . w), with w = covariance^-1 cov(x, z).
    rng = np.random.default_rng(2)
    codes = (rng.random(500) < 0.3).astype(np.int64)
    vectors = (rng.normal(size=(500, 5)) + np.outer(codes, [1, 0, 2, 0, 0])) @ rng.normal(size=(5, 5))
    centred = vectors - vectors.mean(0)
    cross = centred.T @ (codes - codes.mean()) / 500
    weight = np.linalg.solve(centred.T @ centred / 500, cross)
    expected = vectors - np.outer(centred @ weight, cross) / (cross @ weight)
    np.testing.assert_allclose(linear_erasure(vectors, codes, np.ones(500, bool)), expected, atol=1e-10)


def test_erasure_of_several_groups_is_a_projection_of_the_right_rank():
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 4, size=600)
    vectors = rng.normal(size=(600, 8)) + np.eye(8)[codes] * (codes >= 0)[:, None]
    vectors = np.hstack([vectors, vectors[:, :2]])
    everyone = np.ones(600, bool)
    erased = linear_erasure(vectors, codes, everyone)
    means = np.array([erased[codes == code].mean(0) for code in range(4)])
    np.testing.assert_allclose(means - means[0], 0, atol=1e-12)
    np.testing.assert_allclose(linear_erasure(erased, codes, everyone), erased, atol=1e-9)
    assert np.linalg.matrix_rank(vectors - erased, tol=1e-8) == 3


def test_erasure_is_fitted_on_the_known_users_of_the_mask_alone():
    vectors, codes, held_out = planted(600, width=5, share=0.4, shift=2.0)
    codes[::7] = -1
    fit = ~held_out & (codes >= 0)
    erased = linear_erasure(vectors, codes, ~held_out)
    # their mean stays where it was, and the groups meet in it
    for code in (0, 1):
        np.testing.assert_allclose(erased[fit & (codes == code)].mean(0), vectors[fit].mean(0), atol=1e-10)
    # whatever the others are like, the map is the same
    others, moved = vectors.copy(), np.where(codes < 0, codes, 1 - codes)
    others[~fit] = 50 + 3 * others[~fit] @ np.random.default_rng(1).normal(size=(5, 5))
    again = linear_erasure(others, np.where(held_out, moved, codes), ~held_out)
    np.testing.assert_array_equal(again[fit], erased[fit])
    # and it is one affine map for everybody
    design = np.column_stack([vectors, np.ones(len(vectors))])
    slope = np.linalg.lstsq(design[fit], erased[fit], rcond=None)[0]
    np.testing.assert_allclose(design @ slope, erased, atol=1e-9)


def test_erasure_without_anything_to_erase_changes_nothing():
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    for codes in (np.zeros(50, np.int64), np.full(50, -1)):
        np.testing.assert_allclose(linear_erasure(vectors, codes, np.ones(50, bool)), vectors)
    np.testing.assert_array_equal(linear_erasure(vectors, np.arange(50) % 2, np.zeros(50, bool)), vectors)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=6, max_size=6), st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 2**32)
)
def test_held_out_users_are_stratified(sizes, fraction, seed):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(-1, 5), sizes))
    held_out = held_out_users(codes, fraction, seed)
    assert held_out.shape == codes.shape and not held_out[codes < 0].any()
    for code in range(5):
        size, drawn = int((codes == code).sum()), int(held_out[codes == code].sum())
        if size < 2:
            assert drawn == 0
        else:
            assert 1 <= drawn <= size - 1
            assert abs(drawn - np.clip(fraction * size, 1, size - 1)) <= 0.5 + 1e-9
    np.testing.assert_array_equal(held_out, held_out_users(codes, fraction, seed))


def test_held_out_draw_is_uniform_and_depends_on_the_seed():
    codes = np.arange(100) % 2
    counts = sum(held_out_users(codes, 0.2, seed).astype(int) for seed in range(400))
    # Binomial(400, 0.2): standard deviation 8.
    assert abs(counts - 80).max() < 40
    with pytest.raises(ValueError, match="fraction is 1"):
        held_out_users(codes, 1)


def test_an_attribute_hidden_only_for_known_users_is_found_among_the_held_out():
    """What memorises the users it was shown fools probes that are fitted on those users, and only those probes."""
    rng = np.random.default_rng(0)
    codes = (rng.random(3000) < 0.3).astype(np.int64)
    held_out = held_out_users(codes, seed=0)
    vectors = rng.normal(size=(3000, 64))
    vectors[held_out, 0] += 2 * codes[held_out]
    result = leakage_auc(vectors, codes, held_out)
    assert max(result["linear"], result["mlp"]) < 0.65
    assert result["within"] > 0.8 and result["auc"] == result["within"]
    shuffled = codes.copy()
    shuffled[~held_out] = rng.permutation(codes[~held_out])
    assert leakage_auc(vectors, shuffled, held_out)["within"] == result["within"]
