"""Train a small convolutional network on scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shoal import trainer


def load() -> tuple[TensorDataset, TensorDataset]:
    """Return the training set (1,437 images) and the held-out set (every fifth of the 1,797 images)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~held_out], labels[~held_out]), TensorDataset(images[held_out], labels[held_out])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return {"accuracy": float((model(images).argmax(dim=1) == labels).float().mean())}


def main() -> None:
    job = trainer.join(epochs=10, seed=7)
    train, held_out = load()
    images, labels = (tensor.to(job.device) for tensor in held_out.tensors)

    model = network().to(job.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    criterion = nn.CrossEntropyLoss()

    model, optimizer, loader = job.prepare(model, optimizer, loader)
    for epoch in job.epochs():
        model.train()
        for x, y in loader:
            loss = criterion(model(x.to(job.device)), y.to(job.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.log(loss=loss)
        score = job.evaluate(lambda model: accuracy(model, images, labels))
        print(f"epoch {epoch}: accuracy {score['accuracy']:.4f}", flush=True)
    job.save("model.safetensors")


if __name__ == "__main__":
    main()
