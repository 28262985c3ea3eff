"""The two models of this example: both read the same inputs and give one logit a flight."""

import torch
from columns import CATEGORIES, CATEGORY_ROWS, CROSS_ROWS, NUMBERS
from data import Batch
from torch import Tensor, nn

__all__ = ["Logistic", "WideAndDeep"]


class Logistic(nn.Module):
    """One weight for each category and each number: the baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.EmbeddingBag(CATEGORY_ROWS, 1, mode="sum", sparse=True)
        self.numbers = nn.Linear(len(NUMBERS), 1)
        nn.init.zeros_(self.categories.weight)

    def forward(self, batch: Batch) -> Tensor:
        """[n] logits."""
        return (self.categories(batch.categories) + self.numbers(batch.numbers)).squeeze(1)

    def tables(self) -> list[Tensor]:
        """What gets sparse gradients."""
        return [self.categories.weight]

    def dense(self) -> list[Tensor]:
        """What gets dense gradients."""
        return list(self.numbers.parameters())


class WideAndDeep(nn.Module):
    """A linear model over crosses of the categories beside a network over their embeddings.

    Each half has a single table, shared by all its columns: on a cluster a table's rows are fetched once a batch, and
    fetching from one table costs less than from twenty.
    """

    def __init__(self, width: int = 8, hidden: int = 64) -> None:
        super().__init__()
        self.crosses = nn.EmbeddingBag(CROSS_ROWS, 1, mode="sum", sparse=True)
        self.categories = nn.Embedding(CATEGORY_ROWS, width, sparse=True)
        self.network = nn.Sequential(
            nn.Linear(len(CATEGORIES) * width + len(NUMBERS), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        nn.init.zeros_(self.crosses.weight)
        nn.init.normal_(self.categories.weight, std=0.05)

    def forward(self, batch: Batch) -> Tensor:
        """[n] logits."""
        deep = torch.cat([self.categories(batch.categories).flatten(1), batch.numbers], dim=1)
        return (self.crosses(batch.crosses) + self.network(deep)).squeeze(1)

    def tables(self) -> list[Tensor]:
        """What gets sparse gradients."""
        return [self.crosses.weight, self.categories.weight]

    def dense(self) -> list[Tensor]:
        """What gets dense gradients."""
        return list(self.network.parameters())
