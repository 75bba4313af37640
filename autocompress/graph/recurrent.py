"""Recurrent layers as lifted graphs call them: flat tensors in, a flat tuple out."""

from torch import Tensor, nn


class LSTM(nn.LSTM):
    """(x[, h_0, c_0]) → (output, h_n, c_n)."""

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        output, (hidden, cell) = super().forward(x, (states[0], states[1]) if states else None)
        return output, hidden, cell


class GRU(nn.GRU):
    """(x[, h_0]) → (output, h_n)."""

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, hidden = super().forward(x, states[0] if states else None)
        return output, hidden


class RNN(nn.RNN):
    """(x[, h_0]) → (output, h_n)."""

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, hidden = super().forward(x, states[0] if states else None)
        return output, hidden


RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
