"""Maps where there is no JAX: on NumPy and safetensors alone, and as modules of PyTorch, FAISS and ONNX."""

from mv2v_jax.portable.calibration import ScoreCalibration, calibrate_scores
from mv2v_jax.portable.faiss_map import to_faiss
from mv2v_jax.portable.numpy_map import PortableMap, from_map, load
from mv2v_jax.portable.onnx_map import to_onnx
from mv2v_jax.portable.torch_map import to_torch

__all__ = ["PortableMap", "ScoreCalibration", "calibrate_scores", "from_map", "load", "to_faiss", "to_onnx", "to_torch"]
