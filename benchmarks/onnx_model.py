"""The model as an ONNX graph, for ONNX Runtime: the comparison that other people would make.

The LSTM operator computes hard-sigmoid gates itself. Rows of a batch are padded to its longest and their lengths given
to the operator; the attention masks what is behind a row's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from torchmoji_core.lstm import DIRECTIONS
from torchmoji_core.model import dimensions_of

Run = Callable[[Sequence[Sequence[int]]], NDArray[np.float32]]
"""Rows of token ids, longest first -> probabilities."""


def runner(state: Mapping[str, Tensor], directory: Path, int8: bool, threads: int) -> Run:
    """A session of ONNX Runtime; int8 is its own dynamic quantization."""
    path = directory / "model.onnx"
    if not path.exists():
        onnx.save(export(state), path)
    if int8:
        quantized = directory / "model.int8.onnx"
        if not quantized.exists():
            quantize_dynamic(path, quantized, weight_type=QuantType.QInt8)
        path = quantized
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.zeros((int(lengths[0]), len(rows)), np.int64)
        for place, row in enumerate(rows):
            ids[: len(row), place] = row
        mask = np.where(np.arange(len(ids))[:, None] < lengths, 0, -np.inf).astype(np.float32)
        (probabilities, _) = session.run(None, {"ids": ids, "lengths": lengths, "mask": mask})
        return probabilities

    return run


def export(state: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Inputs ids [steps, rows], lengths [rows], mask [steps, rows] (0, or -inf behind a row's end); outputs
    probabilities [rows, classes] and embedding [rows, channels]."""
    weights = {name: tensor.float().numpy() for name, tensor in state.items()}
    dimensions = dimensions_of(state)
    constants = {
        "table": np.tanh(weights["embed.weight"]),
        "attention": weights["attention_layer.attention_vector"][:, None],
        "output_weight": weights["output_layer.0.weight"],
        "output_bias": weights["output_layer.0.bias"],
        "flat": np.array([0, 0, -1], np.int64),
        "last": np.array([2], np.int64),
        "first": np.array([0], np.int64),
    }
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"])]
    source = "x"
    for layer in range(2):
        name = f"lstm_{layer}"
        for key, parts in (
            ("weight_ih", ["weight_ih"]),
            ("weight_hh", ["weight_hh"]),
            ("bias", ["bias_ih", "bias_hh"]),
        ):
            constants[f"{name}.{key}"] = np.stack(
                [
                    np.concatenate([_gates(weights[f"{name}.{part}_l0{suffix}"]) for part in parts])
                    for suffix in DIRECTIONS
                ]
            )
        nodes += [
            helper.make_node(
                "LSTM",
                [source, f"{name}.weight_ih", f"{name}.weight_hh", f"{name}.bias", "lengths"],
                [f"{name}.y"],
                direction="bidirectional",
                hidden_size=dimensions.hidden,
                activations=["HardSigmoid", "Tanh", "Tanh"] * 2,
                activation_alpha=[0.2, 0.2],
                activation_beta=[0.5, 0.5],
            ),
            helper.make_node("Transpose", [f"{name}.y"], [f"{name}.rows"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"{name}.rows", "flat"], [f"{name}.h"]),
        ]
        source = f"{name}.h"
    nodes += [
        helper.make_node("Concat", ["lstm_1.h", "lstm_0.h", "x"], ["features"], axis=2),
        helper.make_node("MatMul", ["features", "attention"], ["logit"]),
        helper.make_node("Squeeze", ["logit", "last"], ["logits"]),
        helper.make_node("Add", ["logits", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=0),
        helper.make_node("Unsqueeze", ["weights", "last"], ["column"]),
        helper.make_node("Mul", ["features", "column"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "first"], ["embedding"], keepdims=0),
        helper.make_node("Gemm", ["embedding", "output_weight", "output_bias"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["steps", "rows"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["rows"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["steps", "rows"]),
        ],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", dimensions.classes]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", dimensions.channels]),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def _gates(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """torch's order i, f, g, o -> ONNX' order i, o, f, c."""
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, o, f, g])
