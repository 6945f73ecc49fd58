"""Starting values of a new model: those of the Keras version that DeepMoji was trained with."""

from __future__ import annotations

from torch import nn

from torchmoji_core.model import TorchMoji


def initialize_like_keras(model: TorchMoji) -> None:
    """Overwrite all parameters in place, from torch's global random state.

    Embedding U(-0.5, 0.5); input kernels Xavier uniform; recurrent kernels orthogonal, each gate by itself;
    biases 0 except the forget gates', which start at 1 (`unit_forget_bias`); attention vector N(0, 0.05);
    output layer Xavier uniform.
    """
    nn.init.uniform_(model.embed.weight, -0.5, 0.5)
    for lstm in (model.lstm_0, model.lstm_1):
        size = lstm.hidden_size
        for name, parameter in lstm.named_parameters():
            if name.startswith("weight_ih"):
                for gate in parameter.data.split(size):
                    nn.init.xavier_uniform_(gate)
            elif name.startswith("weight_hh"):
                for gate in parameter.data.split(size):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih"):
                    nn.init.ones_(parameter.data[size : 2 * size])
    nn.init.normal_(model.attention_layer.attention_vector, 0, 0.05)
    nn.init.xavier_uniform_(model.output_layer.get_parameter("0.weight"))
    nn.init.zeros_(model.output_layer.get_parameter("0.bias"))
