"""The Inception network of 2015 that FID is defined by, as a PyTorch module that takes the community's weights.

The original is the frozen TensorFlow graph `classify_image_graph_def.pb` of `inception-2015-12-05.tgz`, which ADM's
script reads (openai/guided-diffusion, evaluations/evaluator.py). Images enter at `ExpandDims:0` as floats 0..255. FID
reads `pool_3:0`, and sFID the first seven channels of `mixed_6/conv:0`. The Inception score multiplies `pool_3` with
the weights of `softmax/logits/MatMul`, without the bias. Networks of this name in other libraries differ from it:

- the resizing is that of TensorFlow 1: bilinear, without half-pixel centres, corners not aligned, no antialiasing;
- pixels are normalised as (x - 128) / 128;
- average pools do not count the padding, and the pool branch of the last block takes the maximum;
- batch normalisation has eps 1e-3, and there are 1008 logits.

Modules and parameters have the names of pytorch-fid and torch-fidelity, so that the community's file of weights loads
strictly.

Legend: B images, H and W height and width, C channels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 299
NUM_POOL = 2048
NUM_LOGITS = 1008
NUM_SPATIAL_CHANNELS = 7  # sFID's; 17 * 17 * 7 = 2023 features


class InceptionOutput(NamedTuple):
    """The outputs that the metrics read.

    Attributes:
        pool: Features (B, 2048) for FID, KID, precision and recall.
        spatial: Features (B, 2023) for sFID: 17 x 17 x 7, the channel fastest.
        logits: Logits (B, 1008) for the Inception score, without the bias.
    """

    pool: Tensor
    spatial: Tensor
    logits: Tensor


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """Resize bilinearly as TensorFlow 1 does: pixel x of the output is taken at x * W / size of the input.

    Args:
        images: Images (B, C, H, W), floats.
        size: Height and width of the result.

    Source: tensorflow/core/kernels/resize_bilinear_op.cc, with align_corners and half_pixel_centers both false.
    """
    for dim in (3, 2):  # TensorFlow interpolates within rows first, then between them
        length = images.shape[dim]
        place = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(length / size)
        low = place.long()
        fraction = (place - low).to(images.dtype).unflatten(0, (-1, 1) if dim == 2 else (-1,))
        before = images.index_select(dim, low)
        after = images.index_select(dim, (low + 1).clamp(max=length - 1))
        images = before + (after - before) * fraction
    return images


class ConvBN(nn.Module):
    """Convolution, batch normalisation and ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1, pads: bool = True
    ) -> None:
        super().__init__()
        padding = "same" if pads and stride == 1 else "valid"
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def average_pool(x: Tensor) -> Tensor:
    """Return averages over 3 x 3 pixels, of those that lie inside the image."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Mixed35(nn.Module):
    """Block on 35 x 35 positions, with the branches 1x1, 5x5, double 3x3 and pool."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBN(in_channels, 64, 1)
        self.branch5x5_1 = ConvBN(in_channels, 48, 1)
        self.branch5x5_2 = ConvBN(48, 64, 5)
        self.branch3x3dbl_1 = ConvBN(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3)
        self.branch_pool = ConvBN(in_channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), branch5x5, branch3x3, self.branch_pool(average_pool(x))], 1)


class Reduction35(nn.Module):
    """Block that takes 35 x 35 positions to 17 x 17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBN(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvBN(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvBN(64, 96, 3)
        self.branch3x3dbl_3 = ConvBN(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), branch3x3dbl, F.max_pool2d(x, 3, stride=2)], 1)


class Mixed17(nn.Module):
    """Block on 17 x 17 positions, with the branches 1x1, factored 7x7, double factored 7x7 and pool."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBN(768, 192, 1)
        self.branch7x7_1 = ConvBN(768, width, 1)
        self.branch7x7_2 = ConvBN(width, width, (1, 7))
        self.branch7x7_3 = ConvBN(width, 192, (7, 1))
        self.branch7x7dbl_1 = ConvBN(768, width, 1)
        self.branch7x7dbl_2 = ConvBN(width, width, (7, 1))
        self.branch7x7dbl_3 = ConvBN(width, width, (1, 7))
        self.branch7x7dbl_4 = ConvBN(width, width, (7, 1))
        self.branch7x7dbl_5 = ConvBN(width, 192, (1, 7))
        self.branch_pool = ConvBN(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average_pool(x))], 1)


class Reduction17(nn.Module):
    """Block that takes 17 x 17 positions to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvBN(768, 192, 1)
        self.branch3x3_2 = ConvBN(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBN(768, 192, 1)
        self.branch7x7x3_2 = ConvBN(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvBN(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvBN(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branch3x3 = self.branch3x3_2(self.branch3x3_1(x))
        branch7x7 = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([branch3x3, branch7x7, F.max_pool2d(x, 3, stride=2)], 1)


class Mixed8(nn.Module):
    """Block on 8 x 8 positions, with the branches 1x1, split 3x3, double split 3x3 and pool.

    Args:
        in_channels: Number of channels C of the input.
        pools_maxima: Whether the pool branch takes maxima: in the last block of the graph it does, elsewhere not.
    """

    def __init__(self, in_channels: int, pools_maxima: bool) -> None:
        super().__init__()
        self.pools_maxima = pools_maxima
        self.branch1x1 = ConvBN(in_channels, 320, 1)
        self.branch3x3_1 = ConvBN(in_channels, 384, 1)
        self.branch3x3_2a = ConvBN(384, 384, (1, 3))
        self.branch3x3_2b = ConvBN(384, 384, (3, 1))
        self.branch3x3dbl_1 = ConvBN(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvBN(448, 384, 3)
        self.branch3x3dbl_3a = ConvBN(384, 384, (1, 3))
        self.branch3x3dbl_3b = ConvBN(384, 384, (3, 1))
        self.branch_pool = ConvBN(in_channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        single = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pools_maxima else average_pool(x)
        return torch.cat([self.branch1x1(x), *single, *double, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """The network of FID. Call it in evaluation mode, without autocast and TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvBN(32, 32, 3, pads=False)
        self.Conv2d_2b_3x3 = ConvBN(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvBN(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvBN(80, 192, 3, pads=False)
        self.Mixed_5b = Mixed35(192, pool_channels=32)
        self.Mixed_5c = Mixed35(256, pool_channels=64)
        self.Mixed_5d = Mixed35(288, pool_channels=64)
        self.Mixed_6a = Reduction35(288)
        self.Mixed_6b = Mixed17(128)
        self.Mixed_6c = Mixed17(160)
        self.Mixed_6d = Mixed17(160)
        self.Mixed_6e = Mixed17(192)
        self.Mixed_7a = Reduction17()
        self.Mixed_7b = Mixed8(1280, pools_maxima=False)
        self.Mixed_7c = Mixed8(2048, pools_maxima=True)
        self.fc = nn.Linear(NUM_POOL, NUM_LOGITS)  # the file of weights has the bias, the metrics do not use it

    def forward(self, images: Tensor) -> InceptionOutput:
        """Return the features of uint8 images (B, H, W, 3)."""
        x = images.permute(0, 3, 1, 2).to(self.fc.weight.dtype)  # (B, 3, H, W)
        x = (resize_tf1(x, SIDE) - 128) / 128  # (B, 3, 299, 299)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (B, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))  # (B, 768, 17, 17)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))  # (B, 768, 17, 17)
        # `mixed_6/conv`, the 1x1 branch of Mixed_6d after ReLU: the first channels of the concatenation
        spatial = x[:, :NUM_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 17 * 17 * 7)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
        pool = x.mean((2, 3))  # (B, 2048)
        return InceptionOutput(pool, spatial, pool @ self.fc.weight.T)
