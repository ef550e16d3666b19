"""A map as an ONNX model."""

from pathlib import Path
from typing import Any

import numpy as np

from mv2v_jax.data.atomic_files import atomic_path
from mv2v_jax.data.output_paths import check_suffix
from mv2v_jax.errors import import_extra
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.portable.numpy_map import PortableMap

# Old versions, so that old runtimes read the model.
_OPSET, _IR_VERSION = 13, 8


def to_onnx(linear_map: PortableMap, path: str | Path, *, frame: Frame = "centred", inverse: bool = False) -> None:
    """Write an ONNX model with the input ``rows [n, d_x]`` and the output ``mapped [n, d_y]``, both float32.

    Args:
        linear_map: from `load` or `from_map`.
        path: file to write; it is written whole or not at all.
        frame: as for `PortableMap.apply`.
        inverse: map rows of the target into the source.

    Raises:
        InputError: onnx is not installed, the name does not end in .onnx, the file cannot be written, or unknown frame.
    """
    check_frame(frame)
    check_suffix(Path(path), ".onnx")
    onnx = import_extra("onnx", "onnx", "to_onnx")
    linear_map = linear_map.invert() if inverse else linear_map
    model = _make_model(onnx, linear_map, frame)
    onnx.checker.check_model(model, full_check=True)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _make_model(onnx: Any, linear_map: PortableMap, frame: Frame) -> Any:
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes: list[Any] = []

    def node(kind: str, *inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def unit_rows(rows: str, name: str) -> str:
        squared = node("ReduceSumSquare", rows, output=f"{name}_squared", axes=[1], keepdims=1)
        length = node("Sqrt", squared, output=f"{name}_length")
        positive = node("Greater", length, "zero", output=f"{name}_positive")
        divisor = node("Where", positive, length, "one", output=f"{name}_divisor")
        return node("Div", rows, divisor, output=name)

    largest = node("ReduceMax", node("Abs", "rows", output="sizes"), output="largest", axes=[1], keepdims=1)
    present = node("Greater", largest, "zero", output="present")
    centred = unit_rows(node("Sub", "rows", "mean_x", output="shifted"), "centred")
    kept = node("Where", present, centred, "zero", output="kept")
    mapped = unit_rows(node("MatMul", kept, "W", output="product"), "unit")
    if frame == "target":
        mapped = node("Add", node("Mul", mapped, "scale_y", output="scaled"), "mean_y", output="moved")
    node("Identity", mapped, output="mapped")

    constants = {"zero": 0.0, "one": 1.0, "W": linear_map.W, "mean_x": linear_map.mean_x}
    if frame == "target":
        constants |= {"mean_y": linear_map.mean_y, "scale_y": linear_map.scale_y}
    float32 = onnx.TensorProto.FLOAT
    d_x, d_y = linear_map.W.shape
    graph = helper.make_graph(
        nodes,
        "mv2v_jax_linear_map",
        [helper.make_tensor_value_info("rows", float32, ["n", d_x])],
        [helper.make_tensor_value_info("mapped", float32, ["n", d_y])],
        [numpy_helper.from_array(np.array(a, np.float32, order="C"), name) for name, a in constants.items()],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="mv2v_jax")
