"""The two models of this example: both take the same inputs and return one logit per flight."""

import torch
from columns import CATEGORIES, CATEGORY_ROWS, CROSS_ROWS, NUMBERS
from data import Batch
from torch import Tensor, nn

__all__ = ["Logistic", "WideAndDeep"]


class Logistic(nn.Module):
    """Logistic regression, the baseline: one weight per category and per number."""

    def __init__(self) -> None:
        super().__init__()
        self.categories = nn.EmbeddingBag(CATEGORY_ROWS, 1, mode="sum", sparse=True)
        self.numbers = nn.Linear(len(NUMBERS), 1)
        nn.init.zeros_(self.categories.weight)

    def forward(self, batch: Batch) -> Tensor:
        """Return the logits, [n]."""
        return (self.categories(batch.categories) + self.numbers(batch.numbers)).squeeze(1)

    def tables(self) -> list[Tensor]:
        """Return the parameters that get sparse gradients."""
        return [self.categories.weight]

    def dense(self) -> list[Tensor]:
        """Return the parameters that get dense gradients."""
        return list(self.numbers.parameters())


class WideAndDeep(nn.Module):
    """A linear model over crosses of the categories, added to a network over embeddings of the categories.

    Each half has a single table, shared by all its columns: on a cluster a table's rows are fetched once per batch, and
    one fetch from one table is cheaper than twenty from twenty tables.
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
        """Return the logits, [n]."""
        deep = torch.cat([self.categories(batch.categories).flatten(1), batch.numbers], dim=1)
        return (self.crosses(batch.crosses) + self.network(deep)).squeeze(1)

    def tables(self) -> list[Tensor]:
        """Return the parameters that get sparse gradients."""
        return [self.crosses.weight, self.categories.weight]

    def dense(self) -> list[Tensor]:
        """Return the parameters that get dense gradients."""
        return list(self.network.parameters())
