"""How many images of a data set may be bad before a run stops.

A few damaged files are no reason to stop. Many may mean that a disk is failing, or that the data are of a kind that is
not read. Example, with the default share of 0.001: 6 of 60 images may be bad, 10 of 5,000, and 100 of 100,000.
"""

from collections.abc import Sequence

ALWAYS_ALLOWED = 10  # images, if they are at most a tenth of the data set


def allowed_bad_images(share: float, num_images: int) -> int:
    """Return the number of images that may be bad.

    Args:
        share: Share of the images that may be bad, such as 0.001. If it is 0, none may be bad. Otherwise one image, a
            tenth of the images up to `ALWAYS_ALLOWED`, or this share of them may be bad, whichever is most.
        num_images: Number of images of the data set.
    """
    return int(max(share * num_images, min(ALWAYS_ALLOWED, num_images // 10), 1)) if share else 0


def check_bad_images(bad: Sequence[str], share: float, num_images: int) -> None:
    """Raise an error if too many images are bad.

    Args:
        bad: Name of each bad image, and why it is bad.
        share: Share of the images that may be bad, see `allowed_bad_images`.
        num_images: Number of images of the data set.

    Raises:
        ValueError: If more are bad; the message names the first five.
    """
    if len(bad) > (allowed := allowed_bad_images(share, num_images)):
        raise ValueError(
            f"{len(bad)} images cannot be decoded, more than max_bad_images={share} allows: {'; '.join(bad[:5])}. At "
            f"most {allowed} of {num_images} may be bad: repair or remove them, or raise --max_bad_images"
        )
