"""Models that are made again from their state dicts, and features that hooks catch."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.errors import ModelError, SpecError
from luthier.tuning.modules import Module, MultiLayerPerceptron, RenateModule, RenateWrapper


class Headed(RenateModule):
    """A head for each task, made when it is asked for."""

    def __init__(self, width, sizes=(3, 2)):
        super().__init__({"width": width, "sizes": sizes})
        self.body = nn.Linear(width, sizes[0])
        self.heads = nn.ModuleDict()

    def forward(self, x, task_id=None):
        return self.heads[task_id](torch.relu(self.body(x)))

    def _add_task_params(self, task_id):
        self.heads[task_id] = nn.Linear(3, 2)

    def get_params(self, task_id=None):
        return [*self.body.parameters(), *self.heads[task_id].parameters()]


def test_a_model_is_made_again_through_a_file_without_code(tmp_path):
    model = Headed(4)
    for task in ("a", "b", "a", None):
        model.add_task_params(task)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = Headed.from_state_dict(load_file(tmp_path / "model.safetensors"))
    x = torch.randn(5, 4)
    assert torch.equal(again(x, "b"), model(x, "b"))
    assert torch.equal(again.get_logits(x, "a"), model(x, "a"))
    assert list(again.heads) == ["a", "b"]
    assert again.constructor_arguments == {"width": 4, "sizes": [3, 2]}
    assert len(again.get_params("a")) == 4
    again.add_task_params("b")  # is known
    assert torch.equal(again(x, "b"), model(x, "b"))


def test_torch_load_reads_it_without_trusting_it(tmp_path):
    model = MultiLayerPerceptron(6, 3, 0, 5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = MultiLayerPerceptron.from_state_dict(
        torch.load(tmp_path / "model.pt", weights_only=True)
    )
    x = torch.randn(2, 6)
    assert torch.equal(again(x), model(x))


def test_a_module_in_a_module_keeps_its_own_arguments():
    class Outer(Module):
        def __init__(self, width):
            super().__init__({"width": width})
            self.inner = MultiLayerPerceptron(width, 2, 0, 3)

        def forward(self, x, task_id=None):
            return self.inner(x)

    again = Outer.from_state_dict(Outer(7).state_dict())
    assert again.inner.constructor_arguments["num_inputs"] == 7


def test_tasks_are_known_after_a_state_is_loaded():
    model, other = Headed(4), Headed(4)
    for each in (model, other):
        each.heads["a"] = nn.Linear(3, 2)  # made by hand, so that nothing says whose it is
    model._task_ids = ["a"]
    other.load_state_dict(model.state_dict())
    head = other.heads["a"]
    other.add_task_params("a")
    assert other.heads["a"] is head


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("_extra_state"), "does not say what a MultiLayerPerceptron was made with"),
        (lambda s: s.pop("_head.bias"), r'Missing key\(s\) in state_dict: "_head.bias"'),
        (lambda s: s.update({"_head.bias": torch.zeros(9)}), "size mismatch for _head.bias"),
        (lambda s: s.update({"other": torch.zeros(1)}), r'Unexpected key\(s\).*"other"'),
        (lambda s: s.update(_extra_state=torch.zeros(3)), "cannot be read from its state"),
        (lambda s: s.update(_extra_state="text"), "cannot be read from its state"),
        (lambda s: s.update(_extra_state=Headed(3).get_extra_state()), "cannot be made again"),
    ],
)
def test_a_state_that_is_not_the_models_is_refused(change, said):
    state = MultiLayerPerceptron(4, 2, 1, 3).state_dict()
    change(state)
    with pytest.raises(ModelError, match=f"(?s){said}"):
        MultiLayerPerceptron.from_state_dict(state)


def test_arguments_that_cannot_be_kept_are_named_when_the_model_is_made():
    class Odd(Module):
        def forward(self, x, task_id=None):
            return x

    with pytest.raises(SpecError, match=r"constructor_arguments\.loss: a CrossEntropyLoss cannot"):
        Odd({"width": 3, "loss": nn.CrossEntropyLoss()})
    with pytest.raises(SpecError, match=r"constructor_arguments\.scale"):
        Odd({"scale": float("nan")})


def test_a_model_has_a_loss_where_it_is_given_one():
    model = MultiLayerPerceptron(4, 2, 0, 3, loss_fn=nn.CrossEntropyLoss())
    assert float(model.loss_fn(torch.zeros(1, 2), torch.tensor([1]))) == pytest.approx(0.6931, 1e-3)
    assert MultiLayerPerceptron(4, 2, 0, 3).loss_fn is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.ones(2, 3), 3.0),
        ((torch.ones(2, 3), torch.ones(2, 3)), 6.0),
        ({"x": torch.ones(2, 3), "y": 2 * torch.ones(2, 3)}, 9.0),
    ],
)
def test_a_wrapped_model_takes_tensors_tuples_and_dicts(given, expected):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(1))

        def forward(self, x, y=None):
            return ((x if y is None else x + y).sum(1) * self.one,)

    model = RenateWrapper(Sum())
    assert model(given).tolist() == [expected] * 2
    state = model.state_dict()
    state["_model.one"] = torch.tensor([2.0])
    model.load_state_dict(state)
    assert model(given).tolist() == [2 * expected] * 2
    with pytest.raises(ModelError, match=r"(?s)state dict alone.*load_state_dict"):
        RenateWrapper.from_state_dict(state)


def test_layers_are_caught_only_when_asked_for():
    model = MultiLayerPerceptron(4, 2, 1, [3, 5])
    x = torch.randn(6, 4)
    model(x)
    assert model.get_intermediate_representation() == []
    for layer in model.intermediate_layers():
        model.register_intermediate_representation_caching_hook(layer)
    model(x)
    first, second = model.get_intermediate_representation()
    linear = model._backbone[1]
    assert torch.equal(first, torch.relu(x @ linear.weight.T + linear.bias))
    assert second.shape == (6, 5)
    model.reset_intermediate_representation_cache()
    model.eval()(x)
    assert model.get_intermediate_representation() == []  # in training mode only
    model.train()(x)
    model.deregister_hooks()
    model(x)
    assert model.get_intermediate_representation() == []


def test_a_copy_catches_for_itself():
    model = MultiLayerPerceptron(4, 2, 0, 3)
    model.register_intermediate_representation_caching_hook(model.intermediate_layers()[0])
    model(torch.randn(6, 4))
    other = copy.deepcopy(model)  # while tensors of a graph are caught
    assert other.get_intermediate_representation() == []
    other(torch.randn(2, 4))
    assert [len(x) for x in other.get_intermediate_representation()] == [2]
    assert [len(x) for x in model.get_intermediate_representation()] == [6]
    other.deregister_hooks()
    model(torch.randn(6, 4))
    assert len(model.get_intermediate_representation()) == 2


def test_the_perceptron_is_what_plain_torch_makes_of_it():
    model = MultiLayerPerceptron(12, 4, 1, (7, 5), activation="Tanh", batch_normalization=True)
    x = torch.randn(9, 3, 4)
    expected = x.reshape(9, 12)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == [(12, 7), (7, 5), (5, 4)]
    for layer in layers[:-1]:
        expected = torch.tanh(expected @ layer.weight.T + layer.bias)
        centred = expected - expected.mean(0)
        expected = centred / (expected.var(0, unbiased=False) + 1e-5).sqrt()
    expected = expected @ layers[-1].weight.T + layers[-1].bias
    assert torch.allclose(model(x), expected, atol=1e-5)
    again = MultiLayerPerceptron.from_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"num_inputs": 0}, "num_inputs: 0 is not"),
        ({"num_outputs": "2"}, "num_outputs: '2' is not"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: -1 is not"),
        ({"hidden_size": [3]}, "hidden_size: 1 sizes for 2 layers"),
        ({"hidden_size": [3, 0]}, r"hidden_size\[1\]: 0 is not"),
        ({"activation": "Relu"}, "no activation 'Relu' .did you mean 'ReLU'"),
        ({"activation": "Linear"}, "no activation 'Linear'"),
        ({"prediction_strategy": "icarl"}, "prediction_strategy: .*updater"),
    ],
)
def test_perceptrons_that_cannot_be_are_refused(words, said):
    with pytest.raises(SpecError, match=said):
        MultiLayerPerceptron(
            **{"num_inputs": 4, "num_outputs": 2, "num_hidden_layers": 1, "hidden_size": 3} | words
        )
