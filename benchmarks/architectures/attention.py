"""Attention and token-mixing nets in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.architecture import Architecture, images, noise, several, tokens


class EncoderNet(nn.Module):
    """PyTorch's own encoder over an embedded sequence; `masked` hides its padding (token 0)."""

    def __init__(self, norm_first: bool = False, masked: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(50, 32), nn.Parameter(torch.randn(1, 12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, norm_first=norm_first, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)
        self.masked, self.batch_first = masked, batch_first

    def forward(self, x: Tensor) -> Tensor:
        hidden = x == 0 if self.masked else None
        y = self.embedding(x) + self.positions
        y = self.encoder(y if self.batch_first else y.transpose(0, 1), src_key_padding_mask=hidden)
        return self.head(y.mean(1 if self.batch_first else 0))


class Seq2SeqTransformer(nn.Module):
    """nn.Transformer with a causal target mask (Vaswani et al., NeurIPS 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(50, 32), nn.Embedding(40, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.head = nn.Linear(32, 40)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.head(self.transformer(self.source(x), self.target(y), tgt_mask=mask, tgt_is_causal=True))


class DefaultAttention(nn.Module):
    """nn.MultiheadAttention as it comes: time first, weights returned."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention, self.head = nn.Linear(8, 32), nn.MultiheadAttention(32, 4), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x).transpose(0, 1)
        attended, _ = self.attention(y, y, y)
        return self.head((y + attended).mean(0))


class Attention(nn.Module):
    """Written by hand, one projection for query, key and value; `rotary` turns queries and keys by their position."""

    def __init__(self, width: int, heads: int, causal: bool = False, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.rotary:
            q, k = self._turned(q), self._turned(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)
        if self.causal:
            future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
            scores = scores.masked_fill(future, -math.inf)
        y = torch.softmax(scores, -1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))

    def _turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(x.shape[2])[:, None] * 100.0 ** (-torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, mixer: nn.Module, hidden: int) -> None:
        super().__init__()
        self.norm1, self.mixer, self.norm2 = nn.LayerNorm(width), mixer, nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, pre-norm blocks (Dosovitskiy et al., ICLR 2021)."""

    def __init__(self, width: int = 32, patch: int = 4, size: int = 16) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, patch, patch), nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, Attention(width, 4), 4 * width) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class MiniGPT(nn.Module):
    """Decoder-only with rotary positions, RMSNorm's place taken by LayerNorm, tied output (Radford et al., 2019)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, width)
        blocks = (Block(width, Attention(width, 4, causal=True, rotary=True), 4 * width) for _ in range(2))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embedding(x))) @ self.embedding.weight.T


class GatedBlock(nn.Module):
    """RMSNorm and SwiGLU (Zhang and Sennrich, 2019; Shazeer, 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.RMSNorm(width), Attention(width, 4), nn.RMSNorm(width)
        self.gate, self.up, self.down = (nn.Linear(i, o, bias=False) for i, o in
                                         ((width, hidden), (width, hidden), (hidden, width)))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class SwiGLUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(50, 32), nn.Sequential(GatedBlock(32, 64), GatedBlock(32, 64))
        self.norm, self.head = nn.RMSNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(x))).mean(1))


class Transposed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class PatchNet(nn.Module):
    """Patches, blocks, the mean over positions."""

    def __init__(self, *blocks: nn.Module, width: int = 32, norm: bool = True) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, width, 4, 4), nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp_mixer() -> nn.Module:
    """Tolstikhin et al., NeurIPS 2021."""

    def across() -> nn.Module:
        return Transposed(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)))

    return PatchNet(Block(32, across(), 64), Block(32, across(), 64))


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta


class AffineBlock(nn.Module):
    """Touvron et al., ResMLP, 2021: no norms, a linear layer across patches."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.norm1, self.across, self.scale1 = Affine(width), Transposed(nn.Linear(length, length)), Affine(width)
        self.norm2, self.scale2 = Affine(width), Affine(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1(self.across(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class SpatialGating(nn.Module):
    """Liu et al., Pay Attention to MLPs (gMLP), NeurIPS 2021."""

    def __init__(self, width: int, hidden: int, length: int) -> None:
        super().__init__()
        self.norm, self.up, self.inner = nn.LayerNorm(width), nn.Linear(width, hidden), nn.LayerNorm(hidden // 2)
        self.across, self.down = nn.Linear(length, length), nn.Linear(hidden // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        v = self.across(self.inner(v).transpose(1, 2)).transpose(1, 2)
        return x + self.down(u * v)


class FeatureTransformer(nn.Module):
    """Each number becomes a token, a class token in front (Gorishniy et al., FT-Transformer, NeurIPS 2021)."""

    def __init__(self, features: int = 10, width: int = 32) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features, width)), nn.Parameter(torch.randn(features, width))
        self.token = nn.Parameter(torch.randn(width))
        self.blocks = nn.Sequential(*(Block(width, Attention(width, 4), 64) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x[:, :, None] * self.weight + self.bias
        y = torch.cat([self.token.expand(x.shape[0], 1, -1), y], 1)
        return self.head(F.relu(self.norm(self.blocks(y)[:, 0])))


class WindowAttention(nn.Module):
    """Shifted windows with a bias by relative position (Liu et al., Swin, ICCV 2021)."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = places[:, :, None] - places[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        w, n = self.window, self.window**2
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.view(batch, height // w, w, width // w, w, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, n, channels)
        q, k, v = self.qkv(x).view(-1, n, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * (channels // self.heads) ** -0.5
        scores = scores + self.table[self.index].permute(2, 0, 1)
        x = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, channels))
        x = x.view(batch, height // w, width // w, w, w, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, height, width, channels)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class WindowNet(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(*(Block(width, WindowAttention(width, 4, 4, s), 64) for s in (0, 2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


class LinearAttention(nn.Module):
    """Kernelised: keys meet values first (Katharopoulos et al., ICML 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("blhd,blhe->bhde", k, v)
        norm = 1 / (torch.einsum("blhd,bhd->blh", q, k.sum(1)) + 1e-6)
        return self.out((torch.einsum("blhd,bhde->blhe", q, context) * norm[..., None]).flatten(2))


class LatentReader(nn.Module):
    """Learnt latents attend to a long input (Jaegle et al., Perceiver, ICML 2021)."""

    def __init__(self, width: int = 32, latents: int = 6) -> None:
        super().__init__()
        self.latents, self.into = nn.Parameter(torch.randn(latents, width)), nn.Linear(12, width)
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)
        self.block, self.head = Block(width, Attention(width, 4), 64), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, latents = self.into(x), self.latents.expand(x.shape[0], -1, -1)
        latents = latents + self.cross(latents, x, x, need_weights=False)[0]
        return self.head(self.block(latents).mean(1))


class PatchSeries(nn.Module):
    """Each channel's series is cut into patches and read by itself (Nie et al., PatchTST, ICLR 2023)."""

    def __init__(self, length: int = 32, patch: int = 8, stride: int = 4, width: int = 32, ahead: int = 8) -> None:
        super().__init__()
        self.patch, self.stride, count = patch, stride, (length - patch) // stride + 1
        self.embed, self.positions = nn.Linear(patch, width), nn.Parameter(torch.randn(count, width))
        self.blocks = nn.Sequential(*(Block(width, Attention(width, 4), 64) for _ in range(2)))
        self.head = nn.Linear(count * width, ahead)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = x.mean(-1, keepdim=True), torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)
        patches = ((x - mean) / spread).unfold(-1, self.patch, self.stride)
        batch, channels = patches.shape[:2]
        y = self.blocks((self.embed(patches) + self.positions).flatten(0, 1))
        return self.head(y.flatten(1)).view(batch, channels, -1) * spread + mean


class Informer(nn.Module):
    """Value and position embeddings, attention by einsum, a distilling convolution (Zhou et al., AAAI 2021)."""

    def __init__(self, channels: int = 4, width: int = 32, heads: int = 4, ahead: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Conv1d(channels, width, 3, padding=1, padding_mode="circular", bias=False)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Conv1d(width, 64, 1), nn.Conv1d(64, width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.distil = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), nn.ELU())
        self.head = nn.Linear(width, ahead)

    def forward(self, x: Tensor) -> Tensor:
        x = self.value(x.transpose(1, 2)).transpose(1, 2)
        q, k, v = (layer(x).view(*x.shape[:2], self.heads, -1) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("blhe,bshe->bhls", q, k) * q.shape[-1] ** -0.5, -1)
        x = self.norm1(x + self.out(torch.einsum("bhls,bshd->blhd", weights, v).reshape(x.shape)))
        x = self.norm2(x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2))
        x = F.max_pool1d(self.distil(x.transpose(1, 2)), 3, 2, 1)
        return self.head(x.mean(2))


def _mixing(mixer: nn.Module) -> nn.Module:
    return PatchNet(Block(32, mixer, 64))


NETS = {
    name: Architecture(build, inputs, "attention")
    for name, build, inputs in (
        ("nn_transformer_encoder", EncoderNet, tokens(12, 50)),
        ("nn_transformer_norm_first", lambda: EncoderNet(norm_first=True), tokens(12, 50)),
        ("nn_transformer_padding_mask", lambda: EncoderNet(masked=True), tokens(12, 50)),
        ("nn_transformer_time_first", lambda: EncoderNet(batch_first=False), tokens(12, 50)),
        ("nn_transformer_seq2seq", Seq2SeqTransformer, several(tokens(12, 50), tokens(9, 40))),
        ("nn_mha_defaults", DefaultAttention, noise(10, 8)),
        ("vision_transformer", VisionTransformer, images(16)),
        ("mini_gpt_rotary_tied", MiniGPT, tokens(12, 60)),
        ("rmsnorm_swiglu", SwiGLUNet, tokens(12, 50)),
        ("mlp_mixer", mlp_mixer, images(16)),
        ("resmlp", lambda: PatchNet(AffineBlock(32, 16), AffineBlock(32, 16), norm=False), images(16)),
        ("gmlp", lambda: PatchNet(SpatialGating(32, 64, 16), SpatialGating(32, 64, 16)), images(16)),
        ("ft_transformer", FeatureTransformer, noise(10)),
        ("swin_windows", WindowNet, images(16)),
        ("linear_attention", lambda: _mixing(LinearAttention(32, 4)), images(16)),
        ("perceiver", LatentReader, noise(20, 12)),
        ("patch_tst", PatchSeries, noise(4, 32)),
        ("informer", Informer, noise(24, 4)),
    )
}
