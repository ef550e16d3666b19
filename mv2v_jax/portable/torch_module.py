"""The module behind `to_torch`; apart, because importing it needs PyTorch."""

import numpy as np
import torch

from mv2v_jax.frame import Frame
from mv2v_jax.portable.numpy_map import PortableMap


class MapModule(torch.nn.Module):
    """Maps raw rows ``[n, d_x]`` as `PortableMap.apply`, in the dtype of its buffers; the result has that of the rows.

    Args:
        linear_map: the map.
        frame: as for `PortableMap.apply`.
    """

    W: torch.Tensor
    mean_x: torch.Tensor
    mean_y: torch.Tensor
    scale_y: torch.Tensor

    def __init__(self, linear_map: PortableMap, frame: Frame) -> None:
        super().__init__()
        self.in_target_frame = frame == "target"
        for name in ("W", "mean_x", "mean_y", "scale_y"):
            array = np.array(getattr(linear_map, name), order="C")
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Map ``rows [..., d_x]`` to ``[..., d_y]``."""
        given = rows.to(self.W.dtype)
        present = (given != 0).any(dim=-1, keepdim=True)
        centred = torch.nn.functional.normalize(given - self.mean_x, dim=-1, eps=1e-30)
        mapped = torch.nn.functional.normalize((centred * present) @ self.W, dim=-1, eps=1e-30)
        if self.in_target_frame:
            mapped = self.mean_y + self.scale_y * mapped
        return mapped.to(rows.dtype)
