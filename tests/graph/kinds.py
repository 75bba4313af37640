"""Small nets, one for each kind of structure that a graph has to follow; their channels are few, so all is quick."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[..., Tensor]


class Net(nn.Module):
    """Layers by name, and a function of them and the inputs."""

    def __init__(self, forward: Forward, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, nn.Parameter(part))
        self.function = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(self, *inputs)


def conv(i: int, o: int, k: int = 3, **settings: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **settings)


def image() -> Tensor:
    return torch.randn(1, 3, 8, 8)


def tokens(width: int = 6) -> Tensor:
    return torch.randn(1, 5, width)


def ids(length: int = 7) -> Tensor:
    return torch.randint(0, 20, (1, length))


def _pooled(m: Net, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))


def between(step: Callable[[Net, Tensor], Tensor], width: int = 8, **parts: nn.Module | Tensor) -> Net:
    """conv → step → conv → head: what `step` does decides whether the first conv's channels may go."""
    return Net(
        lambda m, x: _pooled(m, F.relu(m.b(step(m, m.a(x))))),
        a=conv(3, 8), b=conv(width, 8), head=nn.Linear(8, 3), **parts,
    )  # fmt: skip


def two_dilations() -> Net:
    """One weight, two dilations, and a bias in one of the calls only."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        y = F.conv2d(x, m.kernel, padding=1) + F.conv2d(x, m.kernel, m.shift, padding=2, dilation=2)
        return _pooled(m, F.relu(y))

    return Net(forward, a=conv(3, 8), kernel=torch.randn(8, 8, 3, 3) / 5, shift=torch.randn(8), head=nn.Linear(8, 3))


def shared_backbone() -> Net:
    backbone = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6))
    return Net(
        lambda m, x, y: m.head((m.net(x) - m.net(y)).abs().mean((2, 3))), net=backbone, head=nn.Linear(6, 2)
    )  # fmt: skip


def tied_head() -> Net:
    net = Net(
        lambda m, i: m.head(F.gelu(m.up(m.tok(i)))), tok=nn.Embedding(20, 8), up=nn.Linear(8, 8),
        head=nn.Linear(8, 20, bias=False),
    )  # fmt: skip
    net.head.weight = net.tok.weight
    return net


def encoder_and_transposed_decoder() -> Net:
    """An autoencoder whose decoder is its encoder's weight, the other way round."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return F.conv_transpose2d(F.relu(F.conv2d(x, m.kernel)), m.kernel)

    return Net(forward, kernel=torch.randn(6, 3, 3, 3), spare=conv(3, 3))


def named_alike() -> Net:
    """A parameter `conv_weight` beside a module `conv`."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return _pooled(m, F.relu(F.conv2d(F.relu(m.conv(x)), m.conv_weight, padding=1)))

    return Net(forward, conv=conv(3, 8), conv_weight=torch.randn(8, 8, 3, 3) / 5, head=nn.Linear(8, 3))


def weight_normed() -> Net:
    norm = nn.utils.parametrizations.weight_norm
    return Net(
        lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).mean(2)), a=norm(nn.Conv1d(4, 8, 3)),
        b=norm(nn.Conv1d(8, 6, 3)), head=norm(nn.Linear(6, 3)),
    )  # fmt: skip


def windows() -> Net:
    """Attention within windows that are folded into the batch, with a bias by table and a mask over windows."""

    def forward(m: Net, x: Tensor) -> Tensor:
        n, size, width = x.shape[0], 4, 8
        y = m.inner(x).reshape(n * 2, size, width)
        q, k, v = m.qkv(y).view(n * 2, size, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / 2 + m.table[torch.arange(16) % 7].view(4, 4, 2).permute(2, 0, 1)
        scores = scores.view(n, 2, 2, 4, 4) + m.mask[None, :, None]
        y = (scores.view(-1, 2, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(n * 2, size, width)
        return m.head(m.out(y).reshape(n, 8, width).mean(1))

    parts = {"inner": nn.Linear(6, 8), "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "head": nn.Linear(8, 3)}
    return Net(forward, table=torch.randn(7, 2), mask=torch.randn(2, 4, 4), **parts)


def frames() -> Net:
    """Every frame of a clip through a convolution: frames lie in the batch."""

    def forward(m: Net, x: Tensor) -> Tensor:
        n, t = x.shape[:2]
        y = F.relu(m.b(F.relu(m.a(x.flatten(0, 1))))).mean((2, 3))
        return m.head(y.view(n, t, -1).mean(1))

    return Net(forward, a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 3))


def class_token() -> Net:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.cat([m.cls.expand(x.shape[0], -1, -1), m.inner(x)], 1) + m.places
        x = x + m.down(F.gelu(m.up(m.norm(x))))
        return m.head(x[:, 0])

    return Net(
        forward, cls=torch.randn(1, 1, 8), places=torch.randn(1, 6, 8), inner=nn.Linear(6, 8), norm=nn.LayerNorm(8),
        up=nn.Linear(8, 16), down=nn.Linear(16, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


def padded_attention() -> Net:
    """nn.MultiheadAttention with its defaults, and a padding mask made of the ids."""

    def forward(m: Net, i: Tensor) -> Tensor:
        x = m.tok(i)
        y, _ = m.att(x, x, x, key_padding_mask=i == 0)
        return m.head((x + y).mean(1))

    parts = {"tok": nn.Embedding(20, 8), "att": nn.MultiheadAttention(8, 2, batch_first=True)}
    return Net(forward, **parts, head=nn.Linear(8, 3))


def grouped_query_attention() -> Net:
    """Four query heads on two of keys, rotated by position, causal; a gated MLP; root-mean-square norms."""

    def heads(x: Tensor, count: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], count, 4).transpose(1, 2)

    def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * sin

    def repeated(x: Tensor) -> Tensor:
        n, h, t, d = x.shape
        return x[:, :, None].expand(n, h, 2, t, d).reshape(n, h * 2, t, d)

    def normal(x: Tensor, weight: Tensor) -> Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(m: Net, i: Tensor) -> Tensor:
        x, length = m.tok(i), i.shape[1]
        angles = torch.outer(torch.arange(length).float(), torch.tensor([1.0, 0.1, 1.0, 0.1]))
        cos, sin = angles.cos(), angles.sin()
        y = normal(x, m.first)
        q, k = rotated(heads(m.q(y), 4), cos, sin), rotated(heads(m.k(y), 2), cos, sin)
        mask = torch.full((length, length), -1e9).triu(1)
        scores = (q @ repeated(k).transpose(2, 3) / 2 + mask).softmax(-1) @ repeated(heads(m.v(y), 2))
        x = x + m.o(scores.transpose(1, 2).flatten(2))
        y = normal(x, m.second)
        return m.head(x + m.down(F.silu(m.gate(y)) * m.up(y)))

    def linear(i: int, o: int) -> nn.Linear:
        return nn.Linear(i, o, bias=False)

    return Net(
        forward, tok=nn.Embedding(20, 8), q=linear(8, 16), k=linear(8, 8), v=linear(8, 8), o=linear(16, 8),
        gate=linear(8, 12), up=linear(8, 12), down=linear(12, 8), head=linear(8, 20),
        first=torch.rand(8) + 0.5, second=torch.rand(8) + 0.5,
    )  # fmt: skip


def spatial_gate() -> Net:
    return between(lambda m, x: x * torch.sigmoid(m.map(x)), map=conv(8, 1))


def matrices_on_the_left() -> Net:
    """W @ x with parameters W, over channels that come first, and a shift for each of them."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = F.softplus(m.first @ x.transpose(1, 2) + m.shift[:, None])
        return m.head((m.second @ y).mean(2))

    return Net(
        forward, first=torch.randn(8, 6), shift=torch.randn(8), second=torch.randn(7, 8), head=nn.Linear(7, 3)
    )  # fmt: skip


def scan() -> Net:
    """A state for every channel and a few more numbers, decayed, fed and read step by step: a state space model."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.inner(x)
        size, fed, read = m.told(y).split([2, 3, 3], -1)
        pace = F.softplus(m.pace @ size.transpose(1, 2))
        decay = torch.exp(-m.rates.exp() * pace.transpose(1, 2)[..., None])
        state, seen = 0, []
        for t in range(5):
            state = decay[:, t] * state + fed[:, t, None] * y[:, t, :, None]
            seen.append((state @ read[:, t, :, None])[..., 0])
        return m.head((torch.stack(seen, 1) * m.skip).mean(1))

    return Net(
        forward, inner=nn.Linear(6, 8), told=nn.Linear(8, 8), pace=torch.randn(8, 2), rates=torch.randn(8, 3),
        skip=torch.randn(8), head=nn.Linear(8, 3),
    )  # fmt: skip


def recurrent(kind: type[nn.RNNBase]) -> Net:
    layer = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True)  # type: ignore[call-arg]
    return Net(
        lambda m, x: m.head(m.rnn(F.relu(m.inner(x)))[0][:, -1]), inner=nn.Linear(6, 8), rnn=layer,
        head=nn.Linear(12, 3),
    )  # fmt: skip


def group_normed(groups: int) -> Net:
    return between(lambda m, x: F.relu(m.norm(x)), norm=nn.GroupNorm(groups, 8))


def matrices() -> Net:
    """x @ W and addmm with constant matrices."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = F.relu(x @ m.first)
        return m.head(F.relu(torch.addmm(m.shift, y.flatten(0, 1), m.second)).view(x.shape[0], -1, 8).mean(1))

    return Net(forward, first=torch.randn(6, 8), second=torch.randn(8, 8), shift=torch.randn(8), head=nn.Linear(8, 3))


def chosen_paths() -> Net:
    """Two convolutions, weighed channel by channel by what their sum says (selective kernels)."""

    def forward(m: Net, x: Tensor) -> Tensor:
        paths = torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], 1)
        weights = m.choose(F.relu(m.squeeze(paths.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(x.shape[0], 2, 8, 1, 1).softmax(1)
        return _pooled(m, (paths * weights).sum(1))

    return Net(forward, a=conv(3, 8), b=conv(3, 8), squeeze=conv(8, 4, 1), choose=conv(4, 16, 1), head=nn.Linear(8, 3))


def written_into(m: Net, x: Tensor) -> Tensor:
    """Some channels are added to in place."""
    y = F.relu(x)
    y[:, 2:6] += m.c(x)
    return y


def masked_by_zeros(m: Net, x: Tensor) -> Tensor:
    """A mask that forward fills part by part, on whatever device x is."""
    mask = x.new_zeros((8, 8))
    mask[2:5, :] = 1
    return x * mask


def folded_patches(m: Net, x: Tensor) -> Tensor:
    """Overlapping patches through a linear layer, added up again where they overlap."""
    patches = m.mix(F.unfold(x, 3, padding=1, stride=2).transpose(1, 2))
    return F.fold(patches.transpose(1, 2), (8, 8), 3, padding=1, stride=2)


def messages(write: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Net:
    """What nodes send along the edges of a graph, added up where they arrive."""
    sender, receiver = torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([1, 0, 3, 3, 2, 1])

    def forward(m: Net, x: Tensor) -> Tensor:
        y = F.relu(m.a(x))
        return m.head(F.relu(m.b(write(y, receiver, m.send(y)[:, sender]))).mean(1))

    return Net(forward, a=nn.Linear(6, 8), send=nn.Linear(8, 8), b=nn.Linear(8, 8), head=nn.Linear(8, 3))


def scattered(y: Tensor, receiver: Tensor, sent: Tensor) -> Tensor:
    return y.scatter_add(1, receiver[None, :, None].expand(sent.shape), sent)


def channels_by_number(m: Net, x: Tensor) -> Tensor:
    y = F.relu(x)
    y[:, torch.tensor([5, 2])] += m.c(x)
    return y


def a_frame(m: Net, x: Tensor) -> Tensor:
    """Some pixels take on a value of every channel."""
    y = F.relu(x)
    y[:, :, torch.tensor([[0], [7]]), torch.arange(8)] = m.edge[:, None, None]
    return y


def mixed_tokens() -> Net:
    """Tokens mixed across positions by two linear layers, of which the first is gated, then channels."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.inner(x)
        across = m.norm(y).transpose(1, 2)
        y = y + m.fewer(F.gelu(m.more(across)) * torch.sigmoid(m.gate(across))).transpose(1, 2)
        return m.head((y + m.down(F.gelu(m.up(y)))).mean(1))

    return Net(
        forward, inner=nn.Linear(6, 8), norm=nn.LayerNorm(8), more=nn.Linear(5, 7), gate=nn.Linear(5, 7),
        fewer=nn.Linear(7, 5), up=nn.Linear(8, 12), down=nn.Linear(12, 8), head=nn.Linear(8, 3),
    )  # fmt: skip


def tokens_by_tokens() -> Net:
    """What a linear layer makes of positions is multiplied by the positions themselves, so none may go."""
    return Net(
        lambda m, x: m.head((m.inner(x) * m.across(m.inner(x).transpose(1, 2)).transpose(1, 2)).mean(1)),
        inner=nn.Linear(6, 8), across=nn.Linear(5, 5), head=nn.Linear(8, 3),
    )  # fmt: skip


def distances_of_every_head() -> Net:
    """Heads folded into the batch look up a bias by the distance of two tokens, by numbers repeated for each head."""
    distances = torch.arange(5)[:, None] - torch.arange(5)[None] + 4

    def heads(x: Tensor) -> Tensor:
        return x.view(x.shape[0], 5, 4, 2).transpose(1, 2).reshape(-1, 5, 2)

    def forward(m: Net, x: Tensor) -> Tensor:
        q, k, v = heads(m.q(x)), heads(m.k(x)), heads(m.v(x))
        far = q @ m.places.repeat(x.shape[0], 1, 1).transpose(1, 2)
        scores = q @ k.transpose(1, 2) + far.gather(2, distances.expand(q.shape[0], -1, -1))
        y = (scores.softmax(-1) @ v).view(-1, 4, 5, 2).transpose(1, 2).reshape(-1, 5, 8)
        return m.head(m.o(y).mean(1))

    return Net(
        forward, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), o=nn.Linear(8, 8), head=nn.Linear(8, 3),
        places=torch.randn(4, 9, 2),
    )  # fmt: skip


def outer_product(m: Net, x: Tensor) -> Tensor:
    """Every channel of one layer times all of a narrower one: to the wider the others are positions."""
    return (x[:, :, None] * m.c(x)[:, None]).mean(2)


def split_attention(m: Net, x: Tensor) -> Tensor:
    """Two paths of a grouped convolution, weighed by a grouped squeeze over their sum."""
    n = x.shape[0]
    paths = F.relu(m.paths(x)).view(n, 2, 8, 8, 8)
    weights = m.choose(F.relu(m.squeeze(paths.sum(1).mean((2, 3), keepdim=True))))
    weights = weights.view(n, 2, 2, 4).transpose(1, 2).softmax(1).reshape(n, 2, 8, 1, 1)
    return (paths * weights).sum(1)


KINDS: dict[str, tuple[Callable[[], Net], Callable[[], tuple[Tensor, ...]], set[str]]] = {
    "two dilations of one weight": (two_dilations, lambda: (image(),), {"a", "kernel"}),
    "a backbone called twice": (shared_backbone, lambda: (image(), image()), {"net.0", "net.3"}),
    "a tied head": (tied_head, lambda: (ids(),), {"tok"}),
    "a tied decoder": (encoder_and_transposed_decoder, lambda: (image(),), {"kernel"}),
    "a parameter named like a layer": (named_alike, lambda: (image(),), {"conv", "conv_weight"}),
    "weight norm": (weight_normed, lambda: (torch.randn(1, 4, 12),), {"a", "b"}),
    "windows in the batch": (windows, lambda: (torch.randn(1, 8, 6),), {"inner", "qkv", "out"}),
    "frames in the batch": (frames, lambda: (torch.randn(1, 4, 3, 8, 8),), {"a", "b"}),
    "a class token": (class_token, lambda: (tokens(),), {"inner", "up"}),
    "attention under a padding mask": (padded_attention, lambda: (ids(),), {"tok", "att.in_proj"}),
    "grouped queries and rotary positions": (grouped_query_attention, lambda: (ids(),), {"tok", "q", "gate"}),
    "a map of one channel": (spatial_gate, lambda: (image(),), {"a", "b"}),
    "GRU": (lambda: recurrent(nn.GRU), lambda: (tokens(),), {"inner", "rnn"}),
    "LSTM": (lambda: recurrent(nn.LSTM), lambda: (tokens(),), {"inner", "rnn"}),
    "RNN": (lambda: recurrent(nn.RNN), lambda: (tokens(),), {"inner", "rnn"}),
    "norm groups": (lambda: group_normed(4), lambda: (image(),), {"a", "b"}),
    "one norm group": (lambda: group_normed(1), lambda: (image(),), {"a", "b"}),
    "matrices": (matrices, lambda: (tokens(),), {"first", "second"}),
    "matrices on the left": (matrices_on_the_left, lambda: (tokens(),), {"first", "second"}),
    "a scan": (scan, lambda: (tokens(),), {"inner", "told"}),
    "PReLU": (lambda: between(lambda m, x: m.act(x), act=nn.PReLU(8)), lambda: (image(),), {"a", "b"}),
    "instance norm": (
        lambda: between(lambda m, x: m.norm(x), norm=nn.InstanceNorm2d(8, affine=True)), lambda: (image(),), {"a", "b"}
    ),
    "SELU": (lambda: between(lambda m, x: F.selu(x)), lambda: (image(),), {"a", "b"}),
    "GLU": (lambda: between(lambda m, x: F.glu(x, 1), width=4), lambda: (image(),), {"a", "b"}),
    "a condition": (lambda: between(lambda m, x: torch.where(x > 0, x, 0.1 * x)), lambda: (image(),), {"a", "b"}),
    "largest over positions": (
        lambda: between(lambda m, x: x * x.flatten(2).max(2)[0][..., None, None]), lambda: (image(),), {"a", "b"}
    ),
    "standard deviation": (
        lambda: between(lambda m, x: x / (x.std((2, 3), keepdim=True) + 1)), lambda: (image(),), {"a", "b"}
    ),
    "unit length": (lambda: between(lambda m, x: F.normalize(x, dim=1)), lambda: (image(),), {"a", "b"}),
    "roll and flip": (lambda: between(lambda m, x: x.roll(1, 2).flip(3)), lambda: (image(),), {"a", "b"}),
    "channels by number": (
        lambda: between(lambda m, x: x[:, torch.tensor([7, 1, 0, 3])], width=4), lambda: (image(),), {"a", "a:2", "b"}
    ),
    "every second channel": (lambda: between(lambda m, x: x[:, ::2], width=4), lambda: (image(),), {"a", "a:2", "b"}),
    "windows of a map": (
        lambda: between(lambda m, x: F.unfold(x, 1).view(x.shape[0], 8, 8, 8)), lambda: (image(),), {"a", "b"}
    ),
    "a grid": (
        lambda: between(
            lambda m, x: F.grid_sample(x, torch.zeros(x.shape[0], 4, 4, 2), align_corners=False)
        ), lambda: (image(),), {"a", "b"}
    ),
    "bicubic": (
        lambda: between(lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic")), lambda: (image(),), {"a", "b"}
    ),
    "a mixed matrix of positions": (
        lambda: between(lambda m, x: x @ torch.arange(64).view(8, 8).float().div(64)), lambda: (image(),), {"a", "b"}
    ),
    "squeezed": (
        lambda: Net(
            lambda m, x: m.head(F.adaptive_avg_pool2d(F.relu(m.a(x)), 1).squeeze()), a=conv(3, 8), head=nn.Linear(8, 3)
        ), lambda: (image(),), {"a"},
    ),
    "paths that are weighed and summed": (chosen_paths, lambda: (image(),), {"a", "squeeze"}),
    "channels written into": (lambda: between(written_into, c=conv(8, 4)), lambda: (image(),), {"a", "a:2", "b"}),
    "a mask of new zeros": (lambda: between(masked_by_zeros), lambda: (image(),), {"a", "b"}),
    "patches that overlap": (
        lambda: between(folded_patches, mix=nn.Linear(72, 72)), lambda: (image(),), {"a", "mix", "b"}
    ),
    "messages added": (
        lambda: messages(lambda y, at, sent: y.index_add(1, at, sent)), lambda: (tokens(),), {"a", "b"}
    ),
    "messages scattered": (lambda: messages(scattered), lambda: (tokens(),), {"a", "b"}),
    "pixels by number": (
        lambda: between(a_frame, edge=torch.randn(8)), lambda: (image(),), {"a", "b"}
    ),
    "channels written by number": (
        lambda: between(channels_by_number, c=conv(8, 2)), lambda: (image(),), {"b"}
    ),
    "tokens mixed": (mixed_tokens, lambda: (tokens(),), {"inner", "more", "up"}),
    "tokens by tokens": (tokens_by_tokens, lambda: (tokens(),), {"inner"}),
    "distances of every head": (distances_of_every_head, lambda: (tokens(),), {"q", "o"}),
    "an outer product": (lambda: between(outer_product, c=conv(8, 3)), lambda: (image(),), {"a", "b"}),
    "split attention": (
        lambda: between(
            split_attention, paths=conv(8, 16, groups=4), squeeze=conv(8, 4, 1, groups=2),
            choose=conv(4, 16, 1, groups=2),
        ), lambda: (image(),), {"a", "paths", "squeeze", "b"},
    ),
    "einsum": (
        lambda: between(lambda m, x: torch.einsum("bchw,bcij->bchw", x, x.abs())), lambda: (image(),), {"a", "b"}
    ),
}  # fmt: skip
"""Kind → (the net, inputs for one sample, the groups that must be free)."""
