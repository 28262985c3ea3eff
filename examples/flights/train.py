"""Will a flight from New York arrive more than 15 minutes late? A wide-and-deep model with sparse embeddings.

`--model logistic` trains the baseline on the same inputs instead.
"""

import argparse

import torch
from data import Flights, load, whole_batch
from model import Logistic, WideAndDeep
from score import area_under_curve
from torch import nn
from torch.utils.data import DataLoader

from shoal import trainer

MODELS = {"logistic": Logistic, "wide-and-deep": WideAndDeep}


def area_under_curve_of(model: nn.Module, flights: Flights, device: torch.device) -> dict[str, float]:
    batches = [flights.__getitems__(rows) for rows in torch.arange(len(flights)).split(4096)]
    with torch.no_grad():
        scores = torch.cat([model(batch.to(device)) for batch in batches])
    return {"auc": area_under_curve(scores.cpu(), flights.late)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="wide-and-deep")
    arguments = parser.parse_args()

    job = trainer.join(epochs=3, seed=7)
    train, held_out = load()
    model = MODELS[arguments.model]().to(job.device)
    # SparseAdam updates only the rows that a batch used, and accepts no dense parameters; Adam updates the rest.
    sparse = torch.optim.SparseAdam(model.tables(), lr=0.003)
    dense = torch.optim.Adam(model.dense(), lr=0.001)
    loader = DataLoader(train, batch_size=512, shuffle=True, collate_fn=whole_batch)
    criterion = nn.BCEWithLogitsLoss()

    model, (sparse, dense), loader = job.prepare(model, [sparse, dense], loader)
    for epoch in job.epochs():
        for loaded in loader:
            batch = loaded.to(job.device)
            loss = criterion(model(batch), batch.late)
            sparse.zero_grad()
            dense.zero_grad()
            loss.backward()
            sparse.step()
            dense.step()
            job.log(loss=loss)
        score = job.evaluate(lambda model: area_under_curve_of(model, held_out, job.device))
        print(f"epoch {epoch}: AUC {score['auc']:.4f}", flush=True)
    job.save("model.safetensors")


if __name__ == "__main__":
    main()
