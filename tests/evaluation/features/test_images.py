"""Arrays, streams and ADM's files give the images they hold, in order, with their labels."""

import numpy as np
import pytest
from PIL import Image

from dit_hf.evaluation import array_batches, npz_batches, row_batches
from dit_hf.evaluation.features.adm import ArrayInNpz, npz_moments
from dit_hf.evaluation.features.images import check_batch


def test_arrays_come_in_batches_by_number(pictures, joined):
    labels = np.arange(230)
    batches = array_batches(pictures, labels, batch_size=64)
    assert [len(batch[0]) for batch in batches] == [64, 64, 64, 38]
    np.testing.assert_array_equal(batches[3][0], pictures[192:])
    np.testing.assert_array_equal(joined(batches)[1], labels)
    with pytest.raises(IndexError):
        batches[4]


def test_rows_of_a_stream_become_batches(pictures, joined):
    rows = ({"image": Image.fromarray(image), "label": number % 7} for number, image in enumerate(pictures[:10]))
    images, labels = joined(row_batches(rows, batch_size=4, label_column="label"))
    np.testing.assert_array_equal(images, pictures[:10])
    assert labels.tolist() == [number % 7 for number in range(10)]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_in_parts(tmp_path, pictures, joined, save):
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


def test_rows_give_the_same_pixels_opened_or_as_bytes_or_by_their_path(pictures, tmp_path):
    """Grey of 16 bits, which Pillow's own conversion turns white, and which lies on its side."""
    grey = pictures[0, :, :, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(np.rot90(grey).astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    data = (tmp_path / "a.png").read_bytes()
    values = [Image.open(tmp_path / "a.png"), data, {"bytes": data, "path": None}]
    values += [{"bytes": None, "path": str(tmp_path / "a.png")}]
    [images] = row_batches([{"image": value} for value in values])
    for image in images:
        np.testing.assert_array_equal(image, grey[..., None].repeat(3, 2))


def test_row_that_cannot_be_read_is_named(pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[:-60])
    rows = [{"image": data}] * 5
    for value in (
        data[:-60],
        Image.open(tmp_path / "b.png"),
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
    ):
        with pytest.raises(ValueError, match=r"row 5: .*no whole image|row 5: no bytes"):
            list(row_batches([*rows, {"image": value}], batch_size=4))
    for label in (None, True, 1.5, "cat", -1):
        with pytest.raises(ValueError, match="row 1: label .* is no whole number from 0 on"):
            list(row_batches([{"image": data, "label": 0}, {"image": data, "label": label}], label_column="label"))


def test_arrays_that_cannot_be_read_in_parts_are_refused(tmp_path, pictures):
    np.savez(tmp_path / "samples.npz", pictures)
    with pytest.raises(ValueError, match=r"ends before row 231: the file is damaged"):
        ArrayInNpz(tmp_path / "samples.npz", "arr_0").read(228, 231)
    np.savez(tmp_path / "fortran.npz", np.asfortranarray(pictures))
    with pytest.raises(ValueError, match=r"Fortran order, whose rows do not lie together: save np\.ascontiguousarray"):
        npz_batches(tmp_path / "fortran.npz")
    several_sizes = np.empty(2, dtype=object)
    several_sizes[:] = [pictures[0], pictures[0, :4]]
    np.savez(tmp_path / "objects.npz", several_sizes)
    with pytest.raises(ValueError, match=r"arr_0 in .*objects\.npz holds Python objects"):
        npz_batches(tmp_path / "objects.npz")


def test_damage_in_an_npz_is_named(tmp_path, pictures):
    np.savez(tmp_path / "whole.npz", arr_0=pictures, arr_1=np.arange(230), mu=np.zeros(3), sigma=np.eye(3))
    whole = bytearray((tmp_path / "whole.npz").read_bytes())
    (tmp_path / "short.npz").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"short\.npz is no npz file"):
        npz_batches(tmp_path / "short.npz")
    for name, read in (
        ("arr_0", lambda path: list(npz_batches(path))),
        ("arr_1", npz_batches),
        ("sigma", npz_moments),
    ):
        array = ArrayInNpz(tmp_path / "whole.npz", name)
        data = array.read(0, array.shape[0]).tobytes()
        damaged = bytes(whole).replace(data, data[:-1] + bytes([data[-1] ^ 1]))
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} in .*damaged\.npz cannot be read.*Bad CRC"):
            read(tmp_path / "damaged.npz")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([3, 1, 3], dtype=">i4"), [3, 1, 3]),
        (np.array([3.0, 1.0, 3.0], dtype=np.float32), [3, 1, 3]),
        (np.array(["3", "1", "3"]), [3, 1, 3]),
        (np.array(["dog", "cat", "dog"]), [1, 0, 1]),
    ],
    ids=["big-endian", "whole floats", "digits", "names"],
)
def test_labels_of_an_npz_are_whole_numbers_whatever_their_type(tmp_path, pictures, joined, labels, expected):
    np.savez(tmp_path / "samples.npz", pictures[:3], labels)
    batches = npz_batches(tmp_path / "samples.npz", batch_size=2)
    assert joined(batches)[1].tolist() == batches.labels.tolist() == expected
    assert batches.class_names == (["cat", "dog"] if labels.tolist() == ["dog", "cat", "dog"] else None)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.arange(2), r"arr_1 in .* has the shape \(2,\): it must be \(3,\)"),
        (np.eye(3), r"has the shape \(3, 3\)"),
        (np.array([0.5, 1, 2]), "labels of type float: give a whole number or a name"),
        (np.array([np.nan, 1, 2]), "labels of type float"),
        (np.array([True, False, True]), "labels of type bool"),
        (np.array([0, -1, 1]), "label -1: classes are numbered from 0 on"),
        (np.array([0, None, "cat"], dtype=object), r"arr_1 in .* cannot be read.*Object arrays"),
    ],
)
def test_labels_of_an_npz_that_are_none_are_refused_at_once(tmp_path, pictures, labels, complaint):
    np.savez(tmp_path / "samples.npz", pictures[:3], labels)
    with pytest.raises(ValueError, match=complaint):
        npz_batches(tmp_path / "samples.npz")


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
