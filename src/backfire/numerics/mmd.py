"""Maximum mean discrepancy: how far two samples are from having one distribution."""

from __future__ import annotations

import torch

__all__ = ["mmd"]


def mmd(
    left: torch.Tensor, right: torch.Tensor, kernels: int = 5, spread: float = 2.0
) -> torch.Tensor:
    """Return the squared maximum mean discrepancy of two samples: biased, at least 0.

    mean K(left, left) + mean K(right, right) - 2 mean K(left, right), where K is a sum of Gaussian kernels
    exp(-d^2 / s_i) of widths s_i = s * spread^(i - kernels // 2). s is the mean squared distance of two
    different vectors of both samples together; no gradient flows through it. Where all vectors are
    equal, the result is 0.
    Source: Gretton et al. 2012, equation 5; kernels as in RepNoise's code.

    Args:
        left: Vectors (M, D), at least one.
        right: Vectors (N, D), at least one.
        kernels: How many.
        spread: Ratio of neighbouring widths, above 0.
    """
    both = torch.cat([left, right]).float()
    # Differences one by one: products would lose what nearly equal vectors differ in.
    squares = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    count = len(both)
    width = squares.detach().sum() / (count * count - count)
    if width == 0:
        return squares.sum()
    widths = width * spread ** (torch.arange(kernels, device=both.device) - kernels // 2)
    kernel = torch.exp(-squares / widths[:, None, None]).sum(0)
    size = len(left)
    within = kernel[:size, :size].mean() + kernel[size:, size:].mean()
    return within - 2 * kernel[:size, size:].mean()
