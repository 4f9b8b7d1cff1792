"""One pass: the same features however images arrive, from whatever process, and after a kill."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from warm_process import run_two

from dit_hf.evaluation import Features, ImageBatches, array_batches, extract, folder_batches, npz_batches
from dit_hf.evaluation.features import extract as features
from dit_hf.evaluation.metrics import inception_score
from dit_hf.evaluation.metrics.inception_score import softmax


@pytest.fixture
def whole(extractor, pictures) -> dict[str, np.ndarray]:
    """All features at once."""
    outputs = {tap: value.numpy() for tap, value in extractor(torch.from_numpy(pictures)).items()}
    extractor.num_images = 0
    return outputs


def check(found: Features, whole: dict[str, np.ndarray], num_images: int = 230) -> None:
    assert found.num_images == num_images
    np.testing.assert_allclose(found.rows, whole["pool"][:num_images], rtol=1e-6, atol=1e-6)
    for tap, moments in found.moments().items():
        rows = whole[tap][:num_images].astype(np.float64)
        np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(moments.covariance, np.cov(rows, rowvar=False), rtol=1e-5, atol=1e-6)
    score = inception_score(softmax(whole["logits"][:num_images]), split_size=100)
    assert found.total().scores.scores().mean() == pytest.approx(score, rel=1e-6)


@pytest.mark.parametrize("num_groups", [1, 4])
def test_pass_gives_what_all_images_at_once_give(extractor, pictures, whole, num_groups, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 60)
    found = extract(array_batches(pictures, batch_size=50), extractor, num_groups=num_groups, split_size=100)
    check(found, whole)
    assert extractor.num_images == 230


def test_any_iterable_will_do_and_only_what_is_wanted_is_taken(extractor, pictures, whole):
    def endless():
        while True:
            yield pictures

    found = extract(endless(), extractor, num_images=130, split_size=100)
    check(found, whole, 130)
    assert extractor.num_images == 130
    found = extract(array_batches(pictures, np.arange(230), 50), extractor, num_images=130, split_size=100)
    check(found, whole, 130)
    assert found.labels.tolist() == list(range(130))


def test_leaving_out_a_group_leaves_the_other_images(extractor, pictures, whole):
    found = extract(array_batches(pictures, np.arange(230), 50), extractor, num_groups=3, split_size=100)
    part = found.without_group(1)
    assert np.bincount(found.group).tolist() == [77, 77, 76]
    stays = found.group != 1
    assert part.labels.tolist() == np.arange(230)[stays].tolist()
    np.testing.assert_allclose(part.rows, whole["pool"][stays], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(part.moments()["pool"].mean, whole["pool"][stays].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.moments()["pool"].mean, whole["pool"].mean(0), rtol=1e-6)  # still whole


class Killed(Exception):
    pass


def test_the_same_call_goes_on_after_a_kill(extractor, pictures, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 60)
    kills = [True]

    def read(start: int, stop: int) -> np.ndarray:
        if start >= 150 and kills:
            raise Killed
        return pictures[start:stop]

    images = features.ImageBatches(230, 25, read)
    with pytest.raises(Killed):
        extract(images, extractor, split_size=100, work_dir=tmp_path)
    assert extractor.num_images == 150
    (tmp_path / ".features-00000099.npz.1.partial").write_bytes(b"half")
    kills.clear()
    check(extract(images, extractor, split_size=100, work_dir=tmp_path), whole)
    assert extractor.num_images == 230  # none twice
    check(extract(images, extractor, split_size=100, work_dir=tmp_path), whole)
    assert extractor.num_images == 230  # a finished pass is read


def test_iterables_go_on_after_a_kill_too(extractor, pictures, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "CHUNK", 60)

    def images(kill: bool):
        for start in range(0, 230, 30):
            if start == 120 and kill:
                raise Killed
            yield pictures[start : start + 30]

    with pytest.raises(Killed):
        extract(images(True), extractor, split_size=100, work_dir=tmp_path)
    check(extract(images(False), extractor, split_size=100, work_dir=tmp_path), whole)
    assert extractor.num_images == 230


def test_a_folder_of_another_pass_is_refused(make_extractor, pictures, tmp_path):
    extract(array_batches(pictures), make_extractor(), work_dir=tmp_path)
    with pytest.raises(ValueError, match="other images or with other settings"):
        extract(array_batches(pictures), make_extractor(seed=1), work_dir=tmp_path)
    with pytest.raises(ValueError, match="other images or with other settings"):
        extract(array_batches(pictures), make_extractor(), num_images=100, work_dir=tmp_path)


def write_npz(folder: Path, images: np.ndarray) -> Iterable:
    np.savez(folder / "samples.npz", images)
    return npz_batches(folder / "samples.npz")


def write_pngs(folder: Path, images: np.ndarray) -> Iterable:
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder_batches(folder)


SETS = {
    "an array": lambda folder, images: array_batches(images),
    "a file": write_npz,
    "a folder": write_pngs,
    "any iterable": lambda folder, images: (images[start : start + 64] for start in range(0, len(images), 64)),
}


@pytest.mark.parametrize("make", SETS.values(), ids=SETS)
def test_features_of_other_images_are_not_taken_for_those_of_these(make, extractor, pictures, tmp_path):
    (tmp_path / "images").mkdir()
    extract(make(tmp_path / "images", pictures), extractor, work_dir=tmp_path / "work")
    with pytest.raises(ValueError, match="other images or with other settings"):
        extract(make(tmp_path / "images", pictures[::-1]), extractor, work_dir=tmp_path / "work")


def test_features_of_images_that_were_cropped_otherwise_are_not_taken(extractor, pictures, tmp_path):
    write_pngs(tmp_path, pictures[:3])
    for side in (8, 4):
        images = folder_batches(tmp_path, prepare=lambda image, side=side: image.resize((side, side)))
        if side == 8:
            extract(images, extractor, work_dir=tmp_path / "work")
    with pytest.raises(ValueError, match="other images or with other settings"):
        extract(images, extractor, work_dir=tmp_path / "work")


def test_batches_that_are_drawn_are_not_drawn_to_tell_them_apart(extractor, pictures, tmp_path):
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(start)
        return pictures[start:stop]

    for _ in range(2):
        extract(ImageBatches(230, 100, read, "a model", is_costly=True), extractor, work_dir=tmp_path)
    assert asked == [0, 100, 200]


def test_too_few_images_are_refused(extractor, pictures):
    with pytest.raises(ValueError, match=r"num_images=231 is outside 1\.\.230"):
        extract(array_batches(pictures), extractor, num_images=231)
    with pytest.raises(ValueError, match="there are 230 images, num_images=231"):
        extract(iter([pictures]), extractor, num_images=231)
    with pytest.raises(ValueError, match="no images"):
        extract(iter([]), extractor)


@pytest.mark.parametrize("num_groups", [0, 231])
def test_more_groups_than_images_are_refused(extractor, pictures, num_groups):
    with pytest.raises(ValueError, match=rf"num_groups={num_groups} is outside 1\.\.230"):
        extract(array_batches(pictures), extractor, num_groups=num_groups)


def test_labels_of_some_batches_only_are_refused(extractor, pictures):
    with pytest.raises(ValueError, match="some have none"):
        extract(iter([pictures, (pictures, np.arange(230))]), extractor)


TWO_PROCESSES = """
import runpy, sys
import numpy as np
from dit_hf.evaluation import array_batches, extract
from dit_hf.evaluation.features import extract as features

features.CHUNK = 60
extractor = runpy.run_path(sys.argv[1])["TinyExtractor"]()
with np.load(sys.argv[2]) as arrays:
    pictures = arrays["arr_0"]
labels = np.arange(230)
for number, images in enumerate([array_batches(pictures, labels, 25), iter(np.array_split(pictures, 9))]):
    options = {"num_groups": 2, "split_size": 100, "split_seed": None if number else 5}
    found = extract(images, extractor, work_dir=f"{sys.argv[3]}/{number}", **options)
    rank = features.start_inference_accelerator().process_index
    np.savez(f"{sys.argv[3]}/{number}-{rank}.npz", rows=found.rows, mean=found.moments()["spatial"].mean,
             covariance=found.moments()["spatial"].covariance, score=found.total().scores.scores().mean(),
             labels=labels if found.labels is None else found.labels, seen=extractor.num_images)
    extractor.num_images = 0
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(extractor, pictures, whole, tmp_path):
    np.savez(tmp_path / "pictures.npz", pictures)
    conftest = str(Path(__file__).parents[1] / "conftest.py")
    run_two(TWO_PROCESSES, conftest, str(tmp_path / "pictures.npz"), str(tmp_path))
    for number in (0, 1):
        ranks = [dict(np.load(tmp_path / f"{number}-{rank}.npz")) for rank in (0, 1)]
        assert sorted(int(rank["seen"]) for rank in ranks) in ([105, 125], [102, 128])  # each image once
        for rank in ranks:
            np.testing.assert_array_equal(rank["labels"], np.arange(230))
            np.testing.assert_allclose(rank["rows"], whole["pool"], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(rank["mean"], whole["spatial"].mean(0), rtol=1e-6)
            np.testing.assert_allclose(rank["covariance"], np.cov(whole["spatial"], rowvar=False), rtol=1e-4)
            order = np.argsort(np.random.default_rng(5).permutation(230)) if number == 0 else np.arange(230)
            score = inception_score(softmax(whole["logits"][order]), split_size=100)
            assert float(rank["score"]) == pytest.approx(score, rel=1e-6)
