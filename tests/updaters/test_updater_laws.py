"""Every updater of ours keeps the laws of UpdaterCase."""

import numpy as np
import pytest
import torch

from luthier.registry import cards
from luthier.testing.pupils import SmallPupil
from luthier.testing.updaters import ROWS, UpdaterCase
from luthier.updaters.prompted import LearningToPromptTransformer, SPromptTransformer
from luthier.updaters.updater import Part, Seen, Updater

OPTIONS = {
    "RanPAC": {"projected": 9},
    "LoRA": {"lora_r": 2, "orthogonality": 0.5},
    "EWC": {"ewc_lambda": 3.0},
}


class PromptedPupil(SmallPupil):
    """Words of a tiny BERT; a row's class is its first word."""

    def __init__(self, kind, updates: int) -> None:
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=30,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=32,
        )
        super().__init__(torch.zeros(ROWS, 1), torch.arange(ROWS) % 4, 4)
        torch.manual_seed(0)
        more = {"domains": 3} if kind is SPromptTransformer else {"pool_size": 4}
        size = {"prompt_size": 2} | ({"pool_selection_size": 2} if "pool_size" in more else {})
        self.model = kind(BertModel(config), 4, **more, **size)
        generator = torch.Generator().manual_seed(updates)
        self.inputs = torch.randint(5, 30, (ROWS, 4), generator=generator)
        self.inputs[:, 1] = self.of + 5

    def see(self, batch, model=None) -> Seen:
        return Seen(batch, (self.model if model is None else model)(batch[0]))


def case(name: str) -> type[UpdaterCase]:
    def pupil(self, updates: int) -> SmallPupil:
        kind = {"L2P": LearningToPromptTransformer, "S-Prompt": SPromptTransformer}.get(name)
        if kind is None:
            return UpdaterCase.pupil(self, updates)
        found = PromptedPupil(kind, updates)
        found.updates = updates
        return found

    return type(f"Test{name}", (UpdaterCase,),
                {"updater": name, "options": OPTIONS.get(name, {}), "pupil": pupil})  # fmt: skip


globals().update({f"Test{card.name}": case(card.name) for card in cards("updater")})


class Gambling(Part):
    """Draws from the state that everyone shares."""

    def stepped(self, model) -> None:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.rand_like(weight), alpha=0.01)


class Forgetful(Part):
    """Counts steps, and does not say so."""

    steps = 0

    def stepped(self, model) -> None:
        self.steps += 1
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 - 0.01 * self.steps)


class Hoarding(Part):
    """Hands on what no bundle can hold."""

    def hand_on(self):
        return {"rows": np.arange(3)}


@pytest.mark.parametrize(
    ("part", "law"),
    [
        (Gambling, lambda case: case.test_global_random_states_are_left_alone(0)),
        (Forgetful, lambda case: case.test_going_on_from_a_state_is_going_on(0)),
        (Hoarding, lambda case: case.test_what_is_handed_on_is_numbers_and_tensors()),
    ],
)
def test_the_laws_can_be_broken(part, law) -> None:
    class Broken(UpdaterCase):
        updater = "FineTuning"

        def build(self) -> Updater:
            return Updater([part()])

    class Whole(UpdaterCase):
        updater = "FineTuning"

    law(Whole())
    with pytest.raises((AssertionError, TypeError)):
        law(Broken())
