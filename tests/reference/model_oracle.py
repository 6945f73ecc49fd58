"""The network's formulas in numpy float64: one row, one time step and one gate at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = Mapping[str, Array]


class OracleOutput(NamedTuple):
    """Scores of one row."""

    logits: Array
    """[classes]"""
    probabilities: Array
    """[classes]"""
    embedding: Array
    """[channels]"""
    attention: Array
    """[tokens]"""


def float64_state(state: Mapping[str, object]) -> dict[str, Array]:
    """A torch state dict as float64 arrays."""
    return {name: np.asarray(tensor, dtype=np.float64) for name, tensor in state.items()}


def hard_sigmoid(z: Array) -> Array:
    return np.clip(0.2 * z + 0.5, 0.0, 1.0)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def lstm_direction(x: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array, bias_hh: Array) -> Array:
    """[tokens, input] -> [tokens, hidden], from zero states; gates lie in the order i, f, g, o."""
    w_i, w_f, w_g, w_o = np.split(weight_ih, 4)
    u_i, u_f, u_g, u_o = np.split(weight_hh, 4)
    b_i, b_f, b_g, b_o = np.split(bias_ih + bias_hh, 4)
    h = c = np.zeros(weight_hh.shape[1])
    states = []
    for x_t in x:
        i = hard_sigmoid(w_i @ x_t + u_i @ h + b_i)
        f = hard_sigmoid(w_f @ x_t + u_f @ h + b_f)
        g = np.tanh(w_g @ x_t + u_g @ h + b_g)
        o = hard_sigmoid(w_o @ x_t + u_o @ h + b_o)
        c = f * c + i * g
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states)


def bidirectional_lstm(x: Array, state: State, prefix: str = "") -> Array:
    """[tokens, input] -> [tokens, 2 * hidden]: forward and backward states, both in the order of the tokens."""

    def parameters(suffix: str) -> tuple[Array, ...]:
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        return tuple(state[f"{prefix}{name}{suffix}"] for name in names)

    forward = lstm_direction(x, *parameters(""))
    backward = lstm_direction(x[::-1], *parameters("_reverse"))[::-1]
    return np.concatenate([forward, backward], axis=1)


def attention_average(c: Array, vector: Array) -> tuple[Array, Array]:
    """[tokens, channels] -> the weighted average [channels] and the weights [tokens]."""
    weights = softmax(np.array([c_t @ vector for c_t in c]))
    return sum((weight * c_t for weight, c_t in zip(weights, c, strict=True)), np.zeros(c.shape[1])), weights


def oracle_forward(state: State, ids: Sequence[int]) -> OracleOutput:
    """Score one row of token ids."""
    x = np.tanh(np.array([state["embed.weight"][index] for index in ids]))
    h0 = bidirectional_lstm(x, state, "lstm_0.")
    h1 = bidirectional_lstm(h0, state, "lstm_1.")
    features = np.concatenate([h1, h0, x], axis=1)
    embedding, attention = attention_average(features, state["attention_layer.attention_vector"])
    logits = state["output_layer.0.weight"] @ embedding + state["output_layer.0.bias"]
    return OracleOutput(logits, softmax(logits), embedding, attention)
