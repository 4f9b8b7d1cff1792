"""Random groups of images, which a jackknife leaves out one after another.

The groups must not follow the order of the images. If image k belonged to the group k mod G, then classes that come in
turn (0, 1, ..., K - 1, 0, 1, ...) would fill each group with classes of its own, because G often divides K. Leaving out
a group would leave out classes, and the standard error would be a hundred times too large.
"""

import numpy as np
from numpy.typing import NDArray

GROUP_STREAM = 2  # keeps the draws of groups apart from the other uses of a seed
BLOCK = 4096  # images that are dealt out together if the number of all images is not known


class RandomGroups:
    """The group of each image, which depends on the number of the image alone.

    Args:
        num_groups: Number of groups G.
        num_images: Number of all images, which makes the groups equal in size; None if it is not known.
    """

    def __init__(self, num_groups: int, num_images: int | None) -> None:
        self.num_groups, self.block_size = num_groups, num_images or BLOCK

    def __call__(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the groups (B,) of the images of these numbers (B,)."""
        blocks = index // self.block_size
        groups = np.zeros(len(index), np.int64)
        for number in np.unique(blocks).tolist():
            in_block = blocks == number
            order = np.random.default_rng((GROUP_STREAM, number)).permutation(self.block_size)
            groups[in_block] = order[index[in_block] % self.block_size] % self.num_groups
        return groups
