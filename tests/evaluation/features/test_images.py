"""Folders, arrays, streams and ADM's files give the images they hold, in order, with their labels."""

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from dit_hf.evaluation import array_batches, folder_batches, npz_batches, row_batches
from dit_hf.evaluation.features.adm import ArrayInNpz, npz_moments
from dit_hf.evaluation.features.images import check_batch


def joined(batches) -> tuple[np.ndarray, np.ndarray | None]:
    parts = [check_batch(batch) for batch in batches]
    labels = None if parts[0][1] is None else np.concatenate([labels for _, labels in parts])
    return np.concatenate([images for images, _ in parts]), labels


def test_arrays_come_in_batches_by_number(pictures):
    labels = np.arange(230)
    batches = array_batches(pictures, labels, batch_size=64)
    assert [len(batch[0]) for batch in batches] == [64, 64, 64, 38]
    np.testing.assert_array_equal(batches[3][0], pictures[192:])
    np.testing.assert_array_equal(joined(batches)[1], labels)
    with pytest.raises(IndexError):
        batches[4]


def test_folder_is_read_in_the_order_of_paths_and_its_folders_are_classes(tmp_path, pictures):
    for number, name in enumerate(["b/0.png", "a/1.png", "a/0.png", "b/x/1.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[number]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    images, labels = joined(folder_batches(tmp_path, batch_size=3))
    np.testing.assert_array_equal(images, pictures[[2, 1, 0, 3]])
    assert labels.tolist() == [0, 0, 1, 1]


def test_flat_folder_has_no_labels_and_an_empty_one_is_refused(tmp_path, pictures):
    Image.fromarray(pictures[0]).save(tmp_path / "0.png")
    assert joined(folder_batches(tmp_path))[1] is None
    with pytest.raises(ValueError, match="holds no image"):
        folder_batches(tmp_path / "nowhere")


def test_folder_that_was_generated_keeps_its_labels(tmp_path, pictures):
    for number in (0, 1):
        Image.fromarray(pictures[number]).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "label": 5}\n{"file_name": "0.png", "label": 7}\n')
    images, labels = joined(folder_batches(tmp_path))
    assert labels.tolist() == [7, 5]
    theirs = load_dataset("imagefolder", data_dir=str(tmp_path), split="train")  # in the order of the rows
    assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == {
        np.asarray(row["image"]).tobytes(): row["label"] for row in theirs
    }
    Image.fromarray(pictures[2]).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"no label for 2.png and 0 others: add them"):
        folder_batches(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    assert joined(folder_batches(tmp_path))[1] is None


def test_images_of_several_sizes_need_preparation(tmp_path, pictures):
    Image.fromarray(pictures[0]).save(tmp_path / "0.png")
    Image.fromarray(pictures[1]).resize((10, 12)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"sizes \(8, 8\) and \(10, 12\): name a resolution"):
        list(folder_batches(tmp_path))
    images, _ = joined(folder_batches(tmp_path, prepare=lambda image: image.resize((4, 4))))
    assert images.shape == (2, 4, 4, 3)


def test_rows_of_a_stream_become_batches(pictures):
    rows = ({"image": Image.fromarray(image), "label": number % 7} for number, image in enumerate(pictures[:10]))
    images, labels = joined(row_batches(rows, batch_size=4, label_column="label"))
    np.testing.assert_array_equal(images, pictures[:10])
    assert labels.tolist() == [number % 7 for number in range(10)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_parts(tmp_path, pictures, save):
    save(tmp_path / "samples.npz", pictures, np.arange(230))
    batches = npz_batches(tmp_path / "samples.npz", batch_size=50)
    images, labels = joined(batches)
    np.testing.assert_array_equal(images, pictures)
    np.testing.assert_array_equal(labels, np.arange(230))
    np.testing.assert_array_equal(batches[1][0], pictures[50:100])  # back again


def test_a_part_of_an_npz_reads_that_part_only(tmp_path, pictures):
    np.savez(tmp_path / "samples.npz", pictures)
    array = ArrayInNpz(tmp_path / "samples.npz", "arr_0")
    array.read(0, 5)
    assert array._file.tell() == array._begin + 5 * 8 * 8 * 3


def test_grey_pictures_of_a_stream_become_rgb(pictures):
    grey = Image.fromarray(pictures[0]).convert("L")
    [images] = row_batches([{"image": grey}])
    np.testing.assert_array_equal(images[0], np.asarray(grey)[..., None].repeat(3, 2))


def test_arrays_that_cannot_be_read_in_parts_are_refused(tmp_path, pictures):
    np.savez(tmp_path / "samples.npz", pictures)
    with pytest.raises(ValueError, match=r"ends before row 231: the file is damaged"):
        ArrayInNpz(tmp_path / "samples.npz", "arr_0").read(228, 231)
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(pictures))
    with pytest.raises(ValueError, match="Fortran order"):
        npz_batches(tmp_path / "fortran.npz")


def test_another_file_in_the_same_place_is_another_source(tmp_path, pictures):
    path, sources = tmp_path / "samples.npz", set()
    for num in (3, 4):
        np.savez(path, pictures[:num])
        sources.add(npz_batches(path).source)
    assert len(sources) == 2  # a pass is not resumed with it


def test_moments_are_found_by_adms_names(tmp_path):
    np.savez(tmp_path / "reference.npz", mu=np.arange(3.0), sigma=np.eye(3), mu_s=np.zeros(2), sigma_s=np.eye(2))
    moments = npz_moments(tmp_path / "reference.npz")
    assert list(moments) == ["pool", "spatial"]
    assert moments["pool"].mean.tolist() == [0, 1, 2]
    np.savez(tmp_path / "pytorch_fid.npz", mu=np.arange(3.0), sigma=np.eye(3))
    assert list(npz_moments(tmp_path / "pytorch_fid.npz")) == ["pool"]


def test_files_in_another_form_are_refused(tmp_path, pictures):
    np.savez(tmp_path / "floats.npz", pictures / 255)
    with pytest.raises(ValueError, match=r"float64 \(230, 8, 8, 3\): it must be uint8"):
        npz_batches(tmp_path / "floats.npz")
    np.savez(tmp_path / "named.npz", images=pictures)
    with pytest.raises(ValueError, match="holds no arr_0, only images"):
        npz_batches(tmp_path / "named.npz")
    (tmp_path / "none.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is no npz file"):
        npz_moments(tmp_path / "none.npz")


def test_batches_in_another_form_are_refused(pictures):
    with pytest.raises(ValueError, match="float64"):
        check_batch(pictures / 255)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\)"):
        check_batch(pictures[0].transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) for 230"):
        check_batch((pictures, np.arange(2)))
