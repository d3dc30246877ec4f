import warnings

import numpy as np
import pytest
from PIL import Image

from detbench.data.images import read_image
from detbench.errors import DataError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_pixels_come_back_as_they_are(tmp_path, pixels):
    found = read_image(saved(tmp_path, Image.fromarray(pixels)), (12, 20))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_grey_is_the_same_in_every_channel(tmp_path, pixels):
    found = read_image(saved(tmp_path, Image.fromarray(pixels[:, :, 0])))
    assert np.array_equal(found, np.repeat(pixels[:, :, :1], 3, axis=2))


def test_black_and_white_becomes_0_and_255(tmp_path, pixels):
    bits = pixels[:, :, 0] > 127
    found = read_image(saved(tmp_path, Image.fromarray(bits)))
    assert np.array_equal(found, np.repeat(bits[:, :, None] * np.uint8(255), 3, axis=2))


def test_transparency_is_dropped_and_colours_stay(tmp_path, pixels):
    rgba = np.dstack([pixels, np.random.default_rng(1).integers(0, 256, (12, 20), dtype=np.uint8)])
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(rgba))), pixels)
    grey = Image.fromarray(np.ascontiguousarray(rgba[:, :, 2:]), "LA")
    assert np.array_equal(read_image(saved(tmp_path, grey)), np.repeat(pixels[:, :, 2:], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))], ids=["opaque", "one colour", "bytes"])
def test_palette_indices_become_their_colours(tmp_path, transparency):
    palette = np.random.default_rng(2).integers(0, 256, (256, 3), dtype=np.uint8)
    indices = np.random.default_rng(3).integers(0, 256, (12, 20), dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_image(saved(tmp_path, image, **options))
    assert np.array_equal(found, palette[indices])


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.random.default_rng(4).integers(0, 65536, (12, 20), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        found = read_image(saved(tmp_path, Image.fromarray(values), name))
        assert np.array_equal(found[:, :, 1], values // 256)


def test_wider_or_fractional_pixels_are_refused(tmp_path):
    for values in (np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)):
        path = saved(tmp_path, Image.fromarray(values), "a.tif")
        with pytest.raises(DataError, match=r"a\.tif: can't be read as an image: (pixel values|floating)"):
            read_image(path)


def test_cmyk_is_turned_into_rgb_as_pil_does(tmp_path, pixels):
    path = saved(tmp_path, Image.fromarray(pixels).convert("CMYK"), "a.jpg", quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        assert np.array_equal(read_image(path, (12, 20)), np.asarray(image.convert("RGB")))


def rotated(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return saved(tmp_path, Image.fromarray(pixels), f"{orientation}.png", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_ignored_where_the_stored_size_is_annotated(tmp_path, pixels, orientation):
    assert np.array_equal(read_image(rotated(tmp_path, pixels, orientation), (12, 20)), pixels)
    assert np.array_equal(read_image(rotated(tmp_path, pixels, orientation)), pixels)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p, 1)),
    ],
)
def test_the_exif_orientation_is_applied_where_only_the_turned_size_is_annotated(
    tmp_path, pixels, orientation, expected
):
    assert np.array_equal(read_image(rotated(tmp_path, pixels, orientation), (20, 12)), expected(pixels))


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (20, 12)), (3, (20, 12)), (6, (21, 12)), (6, (12, 12))]
)
def test_a_size_that_fits_neither_way_is_refused(tmp_path, pixels, orientation, size):
    path = rotated(tmp_path, pixels, orientation)
    with pytest.raises(DataError) as caught:
        read_image(path, size)
    assert str(caught.value).startswith(
        f"{path}: the image is 20 x 12 pixels, annotated as {size[1]} x {size[0]}"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg: no such image file"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_truncated_file_is_named(tmp_path, name, share):
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: can't be read as an image: ")


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"a\.jpg: can't be read as an image"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(DataError):
        read_image(tmp_path)
