"""From images to a result: ADM's numbers by its formulas, names that do not promise too much, files, settings."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

from dit_hf.evaluation import (
    METRICS,
    Evaluation,
    MetricSettings,
    array_batches,
    class_frechet_distances,
    evaluate,
    extract,
    load_reference,
    make_reference,
    measure,
    npz_batches,
)
from dit_hf.evaluation.features.extractors import FID_NAME
from dit_hf.evaluation.metrics import inception_score, kernel_distance, precision_recall
from dit_hf.evaluation.metrics.inception_score import softmax
from dit_hf.provenance import commit

SMALL = MetricSettings(kid_num_subsets=5, kid_subset_size=40, inception_score_split_size=50)


@pytest.fixture
def fid(make_extractor):
    """The tiny extractor under the name of FID's network, whose names the results then have."""
    return make_extractor(FID_NAME)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.arange(115) % 5


@pytest.fixture(scope="module")
def halves(pictures) -> tuple[np.ndarray, np.ndarray]:
    return pictures[:115], np.clip(pictures[115:] * 0.8 + 30, 0, 255).astype(np.uint8)


def outputs(extractor, images: np.ndarray) -> dict[str, np.ndarray]:
    return {tap: value.numpy() for tap, value in extractor(torch.from_numpy(images)).items()}


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """ADM's `frechet_distance`."""
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sigma_x + sigma_y - 2 * root)


def test_all_metrics_of_one_pass_are_those_of_their_functions(fid, halves, labels):
    reference, samples = halves
    result = evaluate(array_batches(samples, labels), array_batches(reference, labels), fid, settings=SMALL)
    assert fid.num_images == 230  # one pass over each
    r, s = outputs(fid, reference), outputs(fid, samples)
    distances = class_frechet_distances(s["pool"], labels, r["pool"], labels)
    kid = kernel_distance(r["pool"], s["pool"], num_subsets=5, subset_size=40)
    expected = {
        "fid": by_sqrtm(s["pool"].astype(np.float64), r["pool"].astype(np.float64)),
        "sfid": by_sqrtm(s["spatial"].astype(np.float64), r["spatial"].astype(np.float64)),
        "inception_score": inception_score(softmax(s["logits"]), 50),
        **precision_recall(r["pool"], s["pool"], mode="adm_float16")._asdict(),
        "kid": kid.mean,
        "kid_std": kid.std,
        "class_fid": np.mean(list(distances.values())),
    }
    assert {name: result.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert set(result.metrics) == {*expected, "density", "coverage"}
    assert not result.skipped


def test_nothing_is_called_fid_on_other_features(extractor, halves, labels):
    result = evaluate(array_batches(halves[1], labels), array_batches(halves[0], labels), extractor, settings=SMALL)
    assert {"fd", "sfd", "kd", "kd_std", "class_fd"} <= set(result.metrics)
    assert not [name for name in result.metrics if "fid" in name or "kid" in name]
    assert "FID" not in result.table()
    assert "KID" not in result.table()
    assert result.settings["metrics"]["precision_recall_mode"] == "exact"


def test_adm_reference_gives_moments_of_the_file_and_features_of_its_images(fid, halves, pictures, tmp_path):
    whole = outputs(fid, pictures)  # "the training set", of which the file holds half as images
    arrays = {"arr_0": halves[0]}
    for tap, mean, covariance in (("pool", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        rows = whole[tap].astype(np.float64)
        arrays |= {mean: rows.mean(0), covariance: np.cov(rows, rowvar=False)}
    np.savez(tmp_path / "reference.npz", **arrays)
    np.savez(tmp_path / "samples.npz", halves[1])
    result = evaluate(npz_batches(tmp_path / "samples.npz"), tmp_path / "reference.npz", fid, settings=SMALL)
    samples = outputs(fid, halves[1])
    assert result.metrics["fid"] == pytest.approx(by_sqrtm(samples["pool"], whole["pool"]), rel=1e-4)
    assert result.metrics["sfid"] == pytest.approx(by_sqrtm(samples["spatial"], whole["spatial"]), rel=1e-4)
    expected = precision_recall(whole["pool"][:115], samples["pool"], mode="adm_float16")
    assert (result.metrics["precision"], result.metrics["recall"]) == pytest.approx(expected)
    assert result.skipped == {"class_fid": "samples or reference have no labels"}


def test_saved_reference_gives_the_same_numbers_and_is_readable_by_adms_names(fid, halves, labels, tmp_path):
    reference = make_reference(array_batches(halves[0], labels), fid, source="half")
    reference.save(tmp_path / "reference.npz")
    with np.load(tmp_path / "reference.npz") as arrays:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays)
        np.testing.assert_array_equal(arrays["sigma"], reference.moments["pool"].covariance)
    images = array_batches(halves[1], labels)
    seen = fid.num_images
    again = load_reference(tmp_path / "reference.npz", fid)
    assert fid.num_images == seen
    first, second = (evaluate(images, each, fid, settings=SMALL) for each in (reference, again))
    assert first.metrics == second.metrics
    assert second.settings["reference"]["num_images"] == 115


def test_reference_of_another_extractor_is_refused(fid, make_extractor, halves, tmp_path):
    make_reference(array_batches(halves[0]), fid).save(tmp_path / "ours.npz")
    with pytest.raises(ValueError, match="was made with"):
        load_reference(tmp_path / "ours.npz", make_extractor("another"))
    np.savez(tmp_path / "adm.npz", mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(ValueError, match=f"holds statistics of {FID_NAME}, the extractor is another"):
        load_reference(tmp_path / "adm.npz", make_extractor("another"))
    np.savez(tmp_path / "none.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match="neither arr_0 nor mu and sigma"):
        load_reference(tmp_path / "none.npz", fid)


def test_metric_that_cannot_be_computed_is_told_or_refused(fid, halves, tmp_path):
    np.savez(tmp_path / "pytorch_fid.npz", mu=np.zeros(6), sigma=np.eye(6))
    images = array_batches(halves[1])
    result = evaluate(images, tmp_path / "pytorch_fid.npz", fid, settings=SMALL)
    assert set(result.metrics) == {"fid", "inception_score"}
    assert result.skipped["sfid"] == "the reference has no statistics of the tap 'spatial'"
    assert result.skipped["kid"] == "the reference has no images, only statistics"
    assert "sfid" in result.table()
    with pytest.raises(ValueError, match="sfid cannot be computed: the reference has no statistics"):
        evaluate(images, tmp_path / "pytorch_fid.npz", fid, metrics=["fid", "sfid"])
    seen = fid.num_images
    with pytest.raises(ValueError, match=f"metric 'is' is unknown: choose from {', '.join(METRICS)}"):
        evaluate(images, tmp_path / "pytorch_fid.npz", fid, metrics=["is"])
    assert fid.num_images == seen  # before any work


def test_rows_are_kept_only_for_metrics_that_need_them(fid, halves):
    reference = make_reference(array_batches(halves[0]), fid)
    assert extract(array_batches(halves[1]), fid, keep_rows=False).rows is None
    result = evaluate(array_batches(halves[1]), reference, fid, metrics=["fid", "inception_score"])
    assert set(result.metrics) == {"fid", "inception_score"}


def test_few_images_are_warned_of_and_one_is_refused(fid, halves):
    reference = make_reference(array_batches(halves[0]), fid)
    with pytest.warns(UserWarning, match="5 images in the samples for 6 features: the covariance is singular"):
        evaluate(array_batches(halves[1][:5]), reference, fid, metrics=["fid"])
    with pytest.raises(ValueError, match="at least 2 images, there are 1"):
        evaluate(array_batches(halves[1][:1]), reference, fid, metrics=["fid"])


def test_identical_sets_have_distance_zero(fid, halves):
    images = array_batches(halves[0])
    result = evaluate(images, images, fid, metrics=["fid", "sfid", "precision_recall"])
    assert result.metrics["fid"] < 1e-6
    assert result.metrics["sfid"] < 1e-6
    assert result.metrics["precision"] == result.metrics["recall"] == 1


def test_spread_is_the_jackknife_over_groups(fid, pictures):
    """For a mean, the delete-a-group jackknife is the known standard error of group means."""
    reference = make_reference(array_batches(pictures[:50]), fid)
    samples = extract(array_batches(pictures[50:]), fid, num_groups=6, split_size=50)
    result = measure(samples, reference, metrics=["fid"], settings=SMALL)
    parts = [measure(samples.without_group(g), reference, metrics=["fid"]).metrics["fid"] for g in range(6)]
    expected = np.sqrt(5 / 6 * ((np.array(parts) - np.mean(parts)) ** 2).sum())
    assert result.spread["fid"] == pytest.approx(expected, rel=1e-9)
    assert "+-" in result.table()
    assert result.settings["spread"] == "jackknife standard error over 6 groups"


@pytest.mark.slow
def test_spread_tells_how_far_fresh_samples_vary(make_extractor):
    rng = np.random.default_rng(0)

    def draw(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)

    extractor = make_extractor(FID_NAME)
    reference = make_reference(array_batches(draw(2000)), extractor)
    runs = [evaluate(array_batches(draw(300)), reference, extractor, metrics=["fid"], num_groups=10) for _ in range(20)]
    observed = np.std([run.metrics["fid"] for run in runs], ddof=1)
    estimated = np.mean([run.spread["fid"] for run in runs])
    assert observed / 2 < estimated < observed * 2


def test_result_holds_every_setting_and_survives_its_file(fid, halves, tmp_path):
    how_made = {"source": "a sampler", "seed": 3, "guidance_scale": 1.5}
    result = evaluate(array_batches(halves[1]), array_batches(halves[0]), fid, settings=SMALL, sample_settings=how_made)
    result.save(tmp_path / "out" / "result.json")
    assert Evaluation.load(tmp_path / "out" / "result.json") == result
    settings = json.loads((tmp_path / "out" / "result.json").read_text())["settings"]
    assert settings["image_sizes"] == [[8, 8]]
    assert settings["samples"] == how_made
    assert settings["num_images"] == 115
    assert settings["extractor"] == {"name": FID_NAME, "seed": 0}
    assert settings["metrics"]["kid_subset_size"] == 40
    assert settings["metrics"]["precision_recall_mode"] == "adm_float16"
    assert settings["reference"]["num_images"] == 115
    assert settings["environment"]["torch"] == torch.__version__
    assert settings["environment"]["commit"] == commit()


def test_metric_that_a_part_of_the_samples_cannot_have_is_told_without_a_spread(fid, halves):
    samples = extract(array_batches(halves[1]), fid, num_groups=3)
    reference = make_reference(array_batches(halves[0]), fid)
    settings = MetricSettings(kid_subset_size=len(halves[1]))
    result = measure(samples, reference, metrics=["fid", "kid"], settings=settings)
    assert result.metrics["kid"] is not None
    assert set(result.spread) == {"fid"}


def test_few_images_cost_the_metrics_of_neighbours_only(extractor, halves):
    result = evaluate(array_batches(halves[1][:4]), array_batches(halves[0][:3]), extractor)
    assert "fd" in result.metrics
    assert (
        result.skipped["precision_recall"] == "precision_recall_k=3 needs more images than that in a set, there are 3"
    )
    assert (
        result.skipped["density_coverage"] == "density_coverage_k=5 needs more images than that in a set, there are 3"
    )


def test_result_is_not_lost_where_there_is_no_git(fid, halves, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    result = evaluate(array_batches(halves[1]), array_batches(halves[0]), fid, metrics=["fid"])
    assert result.settings["environment"]["commit"] is None
