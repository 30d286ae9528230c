"""Small TensorFlow graphs for tests, made without TensorFlow."""

import numpy as np
from tensorboardX.proto import graph_pb2, types_pb2

EAST_SCORE = "feature_fusion/Conv_7/Sigmoid"


def frozen_graph(name: str = EAST_SCORE) -> bytes:
    """A GraphDef: one 3x3 convolution of stride 4 that answers brightness, and a sigmoid under a name."""
    graph = graph_pb2.GraphDef()
    placeholder = graph.node.add(name="input_images", op="Placeholder")
    placeholder.attr["dtype"].type = types_pb2.DT_FLOAT
    kernel = graph.node.add(name="kernel", op="Const")
    kernel.attr["dtype"].type = types_pb2.DT_FLOAT
    tensor = kernel.attr["value"].tensor
    tensor.dtype = types_pb2.DT_FLOAT
    for size in (3, 3, 3, 1):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = np.full((3, 3, 3, 1), 1 / (27 * 40), np.float32).tobytes()
    conv = graph.node.add(name="conv", op="Conv2D", input=["input_images", "kernel"])
    conv.attr["strides"].list.i.extend([1, 4, 4, 1])
    conv.attr["padding"].s = b"SAME"
    conv.attr["T"].type = types_pb2.DT_FLOAT
    graph.node.add(name=name, op="Sigmoid", input=["conv"]).attr["T"].type = types_pb2.DT_FLOAT
    content: bytes = graph.SerializeToString()
    return content
