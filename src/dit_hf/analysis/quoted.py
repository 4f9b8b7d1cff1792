"""Numbers that the paper printed, as data: quoted, not measured here.

Source: Peebles & Xie 2022 (arXiv 2212.09748v2), tables 2, 3 and 4, figure 12 and section 5.
"""

from typing import NamedTuple

# FID-50K of the twelve models after 400,000 steps of 256 images, without guidance (table 4 and figure 6).
FIDS_400K: dict[str, float] = {
    "S/8": 153.60,
    "S/4": 100.41,
    "S/2": 68.40,
    "B/8": 122.74,
    "B/4": 68.38,
    "B/2": 43.47,
    "L/8": 118.87,
    "L/4": 45.64,
    "L/2": 23.33,
    "XL/8": 106.41,
    "XL/4": 43.01,
    "XL/2": 19.47,
}
CORRELATIONS = {  # with the logarithm of Gflops, over the twelve (figures 8 and 12)
    "FID": -0.93,
    "sFID": -0.86,
    "inception_score": 0.90,
    "precision": 0.93,
    "recall": 0.86,
}


class BlockResult(NamedTuple):
    """A design of the block in XL/2 at 256 px, after 400,000 steps (table 4)."""

    gmacs: float
    million_parameters: int
    fid: float


BLOCKS_400K: dict[str, BlockResult] = {
    "in_context": BlockResult(119.37, 449, 35.24),
    "cross_attention": BlockResult(137.62, 598, 26.14),
    "adaln": BlockResult(118.56, 600, 25.21),
    "adaln_zero": BlockResult(118.64, 675, 19.47),
}

GMACS_512 = 524.60  # XL/2 at 512 px
GMACS_OTHERS = {"ADM": 1120.0, "ADM-U": 742.0, "LDM-4": 103.6}  # at 256 px (section 5.1, figure 2 right)


class Result(NamedTuple):
    """A row of tables 2 and 3: 50,000 samples by ADM's evaluation; None where the paper has a dash."""

    model: str
    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None


IMAGENET_256 = [  # table 2
    Result("BigGAN-deep", 6.95, 7.36, 171.4, 0.87, 0.28),
    Result("StyleGAN-XL", 2.30, 4.02, 265.12, 0.78, 0.53),
    Result("ADM", 10.94, 6.02, 100.98, 0.69, 0.63),
    Result("ADM-U", 7.49, 5.13, 127.49, 0.72, 0.63),
    Result("ADM-G", 4.59, 5.25, 186.70, 0.82, 0.52),
    Result("ADM-G, ADM-U", 3.94, 6.14, 215.84, 0.83, 0.53),
    Result("CDM", 4.88, None, 158.71, None, None),
    Result("LDM-8", 15.51, None, 79.03, 0.65, 0.63),
    Result("LDM-8-G", 7.76, None, 209.52, 0.84, 0.35),
    Result("LDM-4", 10.56, None, 103.49, 0.71, 0.62),
    Result("LDM-4-G (cfg=1.25)", 3.95, None, 178.22, 0.81, 0.55),
    Result("LDM-4-G (cfg=1.50)", 3.60, None, 247.67, 0.87, 0.48),
    Result("DiT-XL/2", 9.62, 6.85, 121.50, 0.67, 0.67),
    Result("DiT-XL/2-G (cfg=1.25)", 3.22, 5.28, 201.77, 0.76, 0.62),
    Result("DiT-XL/2-G (cfg=1.50)", 2.27, 4.60, 278.24, 0.83, 0.57),
]
IMAGENET_512 = [  # table 3
    Result("BigGAN-deep", 8.43, 8.13, 177.90, 0.88, 0.29),
    Result("StyleGAN-XL", 2.41, 4.06, 267.75, 0.77, 0.52),
    Result("ADM", 23.24, 10.19, 58.06, 0.73, 0.60),
    Result("ADM-U", 9.96, 5.62, 121.78, 0.75, 0.64),
    Result("ADM-G", 7.72, 6.57, 172.71, 0.87, 0.42),
    Result("ADM-G, ADM-U", 3.85, 5.86, 221.72, 0.84, 0.53),
    Result("DiT-XL/2", 12.03, 7.12, 105.25, 0.75, 0.64),
    Result("DiT-XL/2-G (cfg=1.25)", 4.64, 5.77, 174.77, 0.81, 0.57),
    Result("DiT-XL/2-G (cfg=1.50)", 3.04, 5.02, 240.82, 0.84, 0.54),
]
TABLES: dict[int, list[Result]] = {256: IMAGENET_256, 512: IMAGENET_512}
