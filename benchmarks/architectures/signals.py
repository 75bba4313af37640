"""Nets over sequences, sounds and time series, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from architectures.architecture import Architecture, images, noise, tokens
from architectures.images import Residual, conv_bn


class RecurrentClassifier(nn.Module):
    """Embedding, a recurrent net, the last hidden state."""

    def __init__(self, kind: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.rnn = kind(32, 48, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(48 * (1 + bidirectional), 5)

    def forward(self, x: Tensor) -> Tensor:
        _, hidden = self.rnn(self.embedding(x))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return self.head(torch.cat([hidden[-2], hidden[-1]], 1) if self.rnn.bidirectional else hidden[-1])


class SequenceTagger(nn.Module):
    """A bidirectional LSTM with a label for each token (Lample et al., NAACL 2016, without the CRF)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(50, 32), nn.LSTM(32, 32, 2, batch_first=True, bidirectional=True)
        self.up, self.head = nn.Linear(64, 64), nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(self.rnn(self.embedding(x))[0])))


class LanguageModel(nn.Module):
    """An LSTM whose output layer shares the embedding's weight (Press and Wolf, EACL 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(60, 32), nn.LSTM(32, 32, batch_first=True)
        self.head = nn.Linear(32, 60, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


class TextCNN(nn.Module):
    """Convolutions of several widths, the maximum over time (Kim, EMNLP 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 32, k) for k in (3, 4, 5))
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x).transpose(1, 2)
        return self.head(torch.cat([F.relu(conv(x)).max(2)[0] for conv in self.convs], 1))


class CausalBlock(nn.Module):
    """Bai et al., An Empirical Evaluation of Generic Convolutional Networks for Sequence Modeling, 2018."""

    def __init__(self, inputs: int, outputs: int, dilation: int, normed: bool) -> None:
        super().__init__()
        wrap = weight_norm if normed else (lambda layer: layer)
        self.pad = 2 * dilation
        self.conv1 = wrap(nn.Conv1d(inputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.conv2 = wrap(nn.Conv1d(outputs, outputs, 3, padding=self.pad, dilation=dilation))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[:, :, : -self.pad])
        y = F.relu(self.conv2(y)[:, :, : -self.pad])
        return F.relu(y + self.skip(x))


class TemporalConvNet(nn.Module):
    def __init__(self, normed: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(*(CausalBlock(i, 32, d, normed) for i, d in ((4, 1), (32, 2), (32, 4))))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions whose skips are summed (van den Oord et al., 2016)."""

    def __init__(self, width: int = 24, layers: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(layers))
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.skips = nn.ModuleList(nn.Conv1d(width, 32, 1) for _ in range(layers))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(32, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for i, (gated, out, skip) in enumerate(zip(self.gated, self.outs, self.skips, strict=True)):
            a, b = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + out(y), total + skip(y)
        return self.last(total)


class TasNetBlock(nn.Module):
    """Luo and Mesgarani, Conv-TasNet, TASLP 2019: PReLU and a norm over channels and time."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden)
        self.layers = nn.Sequential(
            nn.Conv1d(channels, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden),
            depthwise, nn.PReLU(), nn.GroupNorm(1, hidden), nn.Conv1d(hidden, channels, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class TasNet(nn.Module):
    def __init__(self, sources: int = 2, filters: int = 32) -> None:
        super().__init__()
        self.sources = sources
        self.encoder = nn.Conv1d(1, filters, 16, 8)
        self.norm, self.into = nn.GroupNorm(1, filters), nn.Conv1d(filters, 24, 1)
        self.body = nn.Sequential(TasNetBlock(24, 48, 1), TasNetBlock(24, 48, 2))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(24, sources * filters, 1))
        self.decoder = nn.ConvTranspose1d(filters, 1, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        encoded = F.relu(self.encoder(x))
        masks = torch.sigmoid(self.masks(self.body(self.into(self.norm(encoded)))))
        masks = masks.view(x.shape[0], self.sources, *encoded.shape[1:])
        heard = (masks * encoded[:, None]).flatten(0, 1)
        return self.decoder(heard).view(x.shape[0], self.sources, -1)


def m5() -> nn.Module:
    """Dai et al., ICASSP 2017, on raw sound, at half its width."""

    def block(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
        layer = nn.Conv1d(inputs, outputs, kernel, stride)
        return [layer, nn.BatchNorm1d(outputs), nn.ReLU(), nn.MaxPool1d(4)]

    body = (*block(1, 64, 80, 4), *block(64, 64, 3, 1), *block(64, 128, 3, 1), *block(128, 256, 3, 1))
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(256, 10))


def ds_cnn() -> nn.Module:
    """Keyword spotting with depthwise separable convolutions (Zhang et al., Hello Edge, 2017)."""
    blocks = [layer for _ in range(3) for layer in (conv_bn(48, 48, 3, 1, 48), conv_bn(48, 48, 1))]
    first = nn.Sequential(nn.Conv2d(1, 48, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(48), nn.ReLU())
    return nn.Sequential(first, *blocks, nn.AvgPool2d(4), nn.Flatten(), nn.LazyLinear(12))


class KeywordAttention(nn.Module):
    """Convolutions, a GRU and attention with its middle state as the query (de Andrade et al., 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 10, (5, 1), padding=(2, 0)), nn.ReLU(), nn.Conv2d(10, 1, (5, 1), padding=(2, 0))
        )
        self.rnn = nn.GRU(20, 32, batch_first=True, bidirectional=True)
        self.query, self.head = nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.convs(x[:, None]).squeeze(1))
        query = self.query(y[:, y.shape[1] // 2])
        weights = torch.softmax((y @ query[:, :, None]).squeeze(2), 1)
        return self.head((weights[:, None] @ y).squeeze(1))


class Inception1d(nn.Module):
    """Ismail Fawaz et al., InceptionTime, 2020."""

    def __init__(self, inputs: int, filters: int = 16) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, 16, 1, bias=False) if inputs > 1 else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv1d(16 if inputs > 1 else 1, filters, k, padding=k // 2, bias=False) for k in (9, 5, 3)
        )
        self.pooled, self.norm = nn.Conv1d(inputs, filters, 1, bias=False), nn.BatchNorm1d(4 * filters)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bottleneck(x)
        parts = [conv(y) for conv in self.convs]
        return F.relu(self.norm(torch.cat([*parts, self.pooled(F.max_pool1d(x, 3, 1, 1))], 1)))


def inception_time() -> nn.Module:
    body = (Inception1d(1), Residual(Inception1d(64)))
    return nn.Sequential(*body, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 5))


class TextLineReader(nn.Module):
    """Convolutions, a bidirectional LSTM, CTC's log-probabilities, time first (Shi et al., CRNN, TPAMI 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_bn(1, 16), nn.MaxPool2d(2), conv_bn(16, 32), nn.MaxPool2d((2, 1)))
        self.rnn, self.head = nn.LSTM(32 * 4, 32, bidirectional=True), nn.Linear(64, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs(x).flatten(1, 2).permute(2, 0, 1)
        return F.log_softmax(self.head(self.rnn(y)[0]), 2)


class SpeechNet(nn.Module):
    """Convolutions and GRUs over a spectrogram, CTC (Amodei et al., Deep Speech 2, ICML 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 16, (5, 3), 2, (2, 1)), nn.BatchNorm2d(16), nn.Hardtanh(0, 20))
        self.rnn1, self.norm = nn.GRU(16 * 10, 48, batch_first=True, bidirectional=True), nn.BatchNorm1d(96)
        self.rnn2, self.head = nn.GRU(96, 48, batch_first=True), nn.Linear(48, 29)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x[:, None]).flatten(1, 2).transpose(1, 2)
        y = self.norm(self.rnn1(y)[0].transpose(1, 2)).transpose(1, 2)
        return self.head(self.rnn2(y)[0]).log_softmax(-1)


class SeparableSpeech(nn.Module):
    """Time-channel separable convolutions, CTC (Kriman et al., QuartzNet, ICASSP 2020)."""

    def __init__(self) -> None:
        super().__init__()

        def separable(inputs: int, outputs: int) -> list[nn.Module]:
            depthwise = nn.Conv1d(inputs, inputs, 11, padding=5, groups=inputs, bias=False)
            return [depthwise, nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs)]

        self.stem = nn.Sequential(*separable(20, 48), nn.ReLU())
        self.block = nn.Sequential(*separable(48, 48), nn.ReLU(), *separable(48, 48))
        self.skip, self.head = nn.Sequential(nn.Conv1d(48, 48, 1), nn.BatchNorm1d(48)), nn.Conv1d(48, 29, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.log_softmax(self.head(F.relu(self.block(x) + self.skip(x))), 1)


class BeatsBlock(nn.Module):
    """Oreshkin et al., N-BEATS, ICLR 2020, generic basis."""

    def __init__(self, back: int, ahead: int, width: int = 48) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(back, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.back, self.ahead = nn.Linear(width, back), nn.Linear(width, ahead)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(x)
        return self.back(hidden), self.ahead(hidden)


class NBeats(nn.Module):
    def __init__(self, back: int = 32, ahead: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BeatsBlock(back, ahead) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        forecast = torch.zeros(())
        for block in self.blocks:
            back, ahead = block(x)
            x, forecast = x - back, forecast + ahead
        return forecast


class DecompositionLinear(nn.Module):
    """Trend and season, a linear layer each (Zeng et al., DLinear, AAAI 2023)."""

    def __init__(self, back: int = 32, ahead: int = 8) -> None:
        super().__init__()
        self.trend, self.season = nn.Linear(back, ahead), nn.Linear(back, ahead)

    def forward(self, x: Tensor) -> Tensor:
        trend = F.avg_pool1d(F.pad(x, (2, 2), mode="replicate"), 5, 1)
        return self.trend(trend) + self.season(x - trend)


class Seq2Seq(nn.Module):
    """Encoder and decoder GRUs with dot-product attention (Luong et al., EMNLP 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.targets = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.encoder, self.decoder = nn.GRU(32, 32, batch_first=True), nn.GRU(32, 32, batch_first=True)
        self.mix, self.head = nn.Linear(64, 32), nn.Linear(32, 40)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        read, state = self.encoder(self.words(x))
        said, _ = self.decoder(self.targets(y), state)
        context = torch.softmax(said @ read.transpose(1, 2), -1) @ read
        return self.head(torch.tanh(self.mix(torch.cat([said, context], -1))))


NETS = {
    "lstm_classifier": Architecture(lambda: RecurrentClassifier(nn.LSTM), tokens(12, 50), "other"),
    "gru_bidirectional": Architecture(lambda: RecurrentClassifier(nn.GRU, 2, True), tokens(12, 50), "other"),
    "rnn_classifier": Architecture(lambda: RecurrentClassifier(nn.RNN), tokens(12, 50), "other"),
    "bilstm_tagger": Architecture(SequenceTagger, tokens(12, 50), "other"),
    "lstm_language_model_tied": Architecture(LanguageModel, tokens(12, 60), "other"),
    "seq2seq_attention": Architecture(Seq2Seq, lambda batch: (*tokens(12, 50)(batch), *tokens(9, 40)(batch)), "other"),
    "textcnn": Architecture(TextCNN, tokens(20, 50)),
    "tcn_weight_norm": Architecture(TemporalConvNet, noise(4, 32)),
    "tcn_plain": Architecture(lambda: TemporalConvNet(normed=False), noise(4, 32)),
    "wavenet": Architecture(WaveNet, noise(1, 64)),
    "conv_tasnet": Architecture(TasNet, noise(1, 256)),
    "m5": Architecture(m5, noise(1, 4000)),
    "ds_cnn_kws": Architecture(ds_cnn, images(32, 1)),
    "kws_attention_rnn": Architecture(KeywordAttention, noise(24, 20), "other"),
    "inception_time": Architecture(inception_time, noise(1, 64)),
    "crnn_ctc": Architecture(TextLineReader, noise(1, 16, 32), "other"),
    "deep_speech2": Architecture(SpeechNet, noise(20, 40), "other"),
    "quartznet_ctc": Architecture(SeparableSpeech, noise(20, 40)),
    "nbeats": Architecture(NBeats, noise(32), "other"),
    "dlinear": Architecture(DecompositionLinear, noise(3, 32), "other"),
}
