from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shoal.trainer.engine.exports import save_model, write_problem
from shoal.trainer.refusal import Refused


def test_a_file_can_be_where_a_folder_is_or_can_be_made(tmp_path):
    assert write_problem(tmp_path / "model") == write_problem(tmp_path / "new" / "er" / "model") == ""


def test_a_path_that_cannot_be_written_is_reported_before_the_write(tmp_path):
    (tmp_path / "file").touch()
    assert write_problem(tmp_path / "file" / "new" / "model") == f"{tmp_path}/file is no folder"
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert write_problem(tmp_path / "nowhere" / "model") == f"{tmp_path}/nowhere is no folder"


def tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    return model


def test_a_file_has_the_names_of_the_state_dict_and_loads_into_the_model(tmp_path):
    model = tied()
    save_model(model, tmp_path / "new" / "m.safetensors")
    saved = load_file(tmp_path / "new" / "m.safetensors")
    assert saved.keys() == model.state_dict().keys()
    tied().load_state_dict(saved, strict=True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["m.safetensors"], "nothing is left beside it"


def test_a_compiled_models_file_has_the_names_of_the_model_itself(tmp_path):
    model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"))
    save_model(model, tmp_path / "m.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == {"0.weight", "0.bias"}


def test_replaced_values_are_saved_under_all_names_of_a_tied_parameter(tmp_path):
    model = tied()
    save_model(model, tmp_path / "m.safetensors", instead={"0.weight": torch.arange(4.0)})
    saved = load_file(tmp_path / "m.safetensors")
    assert saved["0.weight"].tolist() == saved["1.weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert torch.equal(saved["0.bias"], model[0].bias)


def test_a_buffer_that_is_not_saved_is_not_in_the_file(tmp_path):
    model = nn.Linear(1, 1)
    model.register_buffer("passing", torch.ones(3), persistent=False)
    save_model(model, tmp_path / "m.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == {"weight", "bias"}


def test_a_state_that_is_no_tensor_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            pass

    with pytest.raises(Refused, match="the model's state_dict has _extra_state, a dict, which a safetensors file"):
        save_model(Extra(1, 1), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []
