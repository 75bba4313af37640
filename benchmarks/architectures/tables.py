"""Nets over tables, click logs, graphs and point clouds, in plain torch."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.architecture import Architecture, integers, noise, several


def mlp(*widths: int, last: bool = False) -> nn.Sequential:
    """Linear layers with ReLU in between, and behind the last where asked."""
    layers = [layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*(layers if last else layers[:-1]))


def normed_mlp() -> nn.Module:
    body = (nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(nn.BatchNorm1d(20), *body, nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))


class Ranking(nn.Module):
    """Bags of ids and numbers meet in dot products (Naumov et al., DLRM, 2019)."""

    def __init__(self, fields: int = 4, width: int = 16) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(30, width, mode="sum") for _ in range(fields))
        self.bottom, pairs = mlp(13, 32, width, last=True), fields * (fields + 1) // 2
        self.top = mlp(width + pairs, 32, 16, 1)
        rows, columns = torch.tril_indices(fields + 1, fields + 1, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        features = torch.stack([x, *(bag(ids[:, i]) for i, bag in enumerate(self.bags))], 1)
        products = features @ features.transpose(1, 2)
        return torch.sigmoid(self.top(torch.cat([x, products[:, self.rows, self.columns]], 1)))


class FactorisedRanking(nn.Module):
    """Second-order terms beside an MLP (Guo et al., DeepFM, IJCAI 2017)."""

    def __init__(self, fields: int = 6, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(60, 1), nn.Embedding(60, width)
        self.deep = mlp(fields * width, 32, 32, 1)

    def forward(self, ids: Tensor) -> Tensor:
        linear, vectors = self.first(ids).sum((1, 2)), self.second(ids)
        pairs = 0.5 * (vectors.sum(1) ** 2 - (vectors**2).sum(1)).sum(1)
        return linear + pairs + self.deep(vectors.flatten(1)).squeeze(1)


class WideAndDeep(nn.Module):
    """Cheng et al., 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(20, 8) for _ in range(3))
        self.wide, self.deep = nn.Linear(10, 1), mlp(34, 48, 24, 1)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        embedded = [layer(ids[:, i]) for i, layer in enumerate(self.embeddings)]
        return self.wide(numbers) + self.deep(torch.cat([numbers, *embedded], 1))


class CrossNet(nn.Module):
    """Explicit feature crosses (Wang et al., DCN V2, WWW 2021)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.deep, self.head = mlp(width, 32, 32, last=True), nn.Linear(width + 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for cross in self.crosses:
            y = x * cross(y) + y
        return self.head(torch.cat([y, self.deep(x)], 1))


class TwoTower(nn.Module):
    """Users and items in one space; parameters named as the inputs are (Covington et al., RecSys 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = mlp(12, 48, 16), nn.Sequential(nn.Embedding(40, 24), mlp(24, 48, 16))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return F.cosine_similarity(self.user(user), self.item(item))


class GatedStep(nn.Module):
    def __init__(self, inputs: int, outputs: int, shared: nn.Module) -> None:
        super().__init__()
        self.shared, self.own, self.norm = shared, nn.Linear(outputs, 2 * outputs), nn.BatchNorm1d(2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.shared(x))
        return (x + F.glu(self.norm(self.own(x)))) * 0.5**0.5


class TabNet(nn.Module):
    """Steps that attend to features, with a layer that they share (Arik and Pfister, AAAI 2021; softmax masks)."""

    def __init__(self, features: int = 16, width: int = 16, steps: int = 3) -> None:
        super().__init__()
        self.norm, shared = nn.BatchNorm1d(features), nn.Linear(features, 4 * width)
        self.steps = nn.ModuleList(GatedStep(features, 2 * width, shared) for _ in range(steps))
        self.masks = nn.ModuleList(nn.Linear(width, features) for _ in range(steps))
        self.first, self.head = GatedStep(features, 2 * width, shared), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        _, attended = self.first(x).chunk(2, 1)
        prior, total = torch.ones_like(x), torch.zeros(())
        for step, mask in zip(self.steps, self.masks, strict=True):
            weights = torch.softmax(mask(attended) * prior, 1)
            prior = prior * (1.3 - weights)
            decided, attended = step(x * weights).chunk(2, 1)
            total = total + F.relu(decided)
        return self.head(total)


class PointNet(nn.Module):
    """A shared MLP over points, their maximum, an input transform (Qi et al., CVPR 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU())
        self.matrix = nn.Linear(24, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1),
                                    nn.BatchNorm1d(64))  # fmt: skip
        self.head = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.align(x).max(2)[0]).view(-1, 3, 3) + torch.eye(3)
        x = self.points((x.transpose(1, 2) @ matrix).transpose(1, 2))
        return self.head(x.max(2)[0])


class DeepSets(nn.Module):
    """Zaheer et al., NeurIPS 2017."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp(6, 48, 48), mlp(48, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).sum(1))


class GraphConvNet(nn.Module):
    """Adjacency times features times weight, the adjacency an input (Kipf and Welling, ICLR 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        weights = adjacency / (adjacency.sum(-1, keepdim=True) + 1e-6)
        x = F.relu(weights @ self.a(x))
        return self.head(F.relu(weights @ self.b(x)).mean(1))


class GraphAttention(nn.Module):
    """Velickovic et al., ICLR 2018, on a dense adjacency."""

    def __init__(self, heads: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.lift, self.head = nn.Linear(8, heads * width, bias=False), nn.Linear(heads * width, 4)
        self.source, self.target = nn.Parameter(torch.randn(heads, width)), nn.Parameter(torch.randn(heads, width))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.lift(x).view(*x.shape[:2], self.heads, self.width)
        scores = (h * self.source).sum(-1)[:, :, None] + (h * self.target).sum(-1)[:, None]
        scores = F.leaky_relu(scores, 0.2).masked_fill(adjacency[..., None] < 0.5, -1e9)
        y = torch.einsum("bijh,bjhd->bihd", torch.softmax(scores, 2), h)
        return self.head(F.elu(y.flatten(2)).mean(1))


class BagOfWords(nn.Module):
    """The mean of word vectors (Joulin et al., fastText, EACL 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(50, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(ids))))


class MixtureOfExperts(nn.Module):
    """All experts run, a softmax weighs them (Jacobs et al., 1991)."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(12, experts), nn.ModuleList(mlp(12, 32, 16) for _ in range(experts))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        made = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head((torch.softmax(self.gate(x), 1)[:, :, None] * made).sum(1))


class ActorCritic(nn.Module):
    """A policy and a value from one body, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = mlp(8, 48, 48, last=True), nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"policy": F.log_softmax(self.policy(hidden), 1), "value": self.value(hidden).squeeze(1)}


class RadianceField(nn.Module):
    """Fourier features, a skip in the middle (Mildenhall et al., NeRF, ECCV 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = mlp(39, 48, 48, last=True), mlp(87, 48, 48, last=True), nn.Linear(48, 4)
        self.register_buffer("octaves", 2.0 ** torch.arange(6))

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[:, :, None] * self.octaves).flatten(1)
        y = torch.cat([x, angles.sin(), angles.cos()], 1)
        return self.head(self.second(torch.cat([self.first(y), y], 1)))


_GRAPH = several(noise(9, 8), lambda batch: ((torch.rand(batch, 9, 9) > 0.4).float(),))
NETS = {
    "mlp_tabular": Architecture(normed_mlp, noise(20), "other"),
    "dlrm": Architecture(Ranking, several(noise(13), integers(30, 4, 3)), "other"),
    "deepfm": Architecture(FactorisedRanking, integers(60, 6), "other"),
    "wide_and_deep": Architecture(WideAndDeep, several(noise(10), integers(20, 3)), "other"),
    "dcn_cross": Architecture(CrossNet, noise(16), "other"),
    "two_tower": Architecture(TwoTower, several(noise(12), integers(40)), "other"),
    "tabnet": Architecture(TabNet, noise(16), "other"),
    "pointnet": Architecture(PointNet, noise(3, 40), "other"),
    "deep_sets": Architecture(DeepSets, noise(10, 6), "other"),
    "gcn_adjacency": Architecture(GraphConvNet, _GRAPH, "other"),
    "gat_dense": Architecture(GraphAttention, _GRAPH, "other"),
    "fasttext_bag": Architecture(BagOfWords, integers(50, 10), "other"),
    "mixture_of_experts": Architecture(MixtureOfExperts, noise(12), "other"),
    "actor_critic_dict": Architecture(ActorCritic, noise(8), "other"),
    "nerf": Architecture(RadianceField, noise(3), "other"),
}
