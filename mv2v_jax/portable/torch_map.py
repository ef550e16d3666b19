"""A map as a module of PyTorch."""

from typing import Any

from mv2v_jax.errors import import_extra
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.portable.numpy_map import PortableMap


def to_torch(linear_map: PortableMap, *, frame: Frame = "centred", inverse: bool = False) -> Any:
    """A `torch.nn.Module` that maps raw rows ``[n, d_x]`` to ``[n, d_y]``, in the dtype and on the device of the rows.

    Its arrays are buffers and no parameters, so that an optimiser leaves them alone; gradients flow to the rows. It can
    be moved, saved by ``state_dict``, scripted and compiled as other modules.

    Args:
        linear_map: from `load` or `from_map`.
        frame: as for `PortableMap.apply`.
        inverse: map rows of the target into the source.

    Raises:
        InputError: PyTorch is not installed, or unknown frame.
    """
    check_frame(frame)
    import_extra("torch", "torch", "to_torch")
    from mv2v_jax.portable.torch_module import MapModule

    return MapModule(linear_map.invert() if inverse else linear_map, frame)
