import pytest
import torch
from sampling_parts import tiny_model, tiny_vae

from dit_hf import DiTPipeline
from dit_hf.conversion.imagenet_names import imagenet_names

# Classes of the paper's figures and of ImageNet's own documentation.
KNOWN = {
    0: "tench", 88: "macaw", 207: "golden retriever", 279: "Arctic fox", 360: "otter", 387: "lesser panda",
    417: "balloon", 933: "cheeseburger", 974: "geyser", 979: "valley", 980: "volcano", 999: "toilet tissue",
}  # fmt: skip


def test_each_of_the_thousand_classes_has_its_name():
    names = imagenet_names()
    assert list(names) == list(range(1000))
    for class_id, name in KNOWN.items():
        assert name in names[class_id].split(", ")
    assert not [label for label in names.values() if label != label.strip() or not label or "\n" in label]


@pytest.fixture
def checkpoint(tmp_path):
    def write(num_classes):
        model = tiny_model(num_classes=num_classes)
        torch.save(model.state_dict(), tmp_path / f"{num_classes}.pt")
        return tmp_path / f"{num_classes}.pt"

    return write


def test_checkpoint_of_the_original_with_a_thousand_classes_is_asked_by_name(checkpoint, tmp_path):
    pipe = DiTPipeline.from_pretrained(checkpoint(1000), vae=tiny_vae(), num_attention_heads=4)
    assert pipe.get_label_ids(["golden retriever", "Arctic fox"]) == [207, 279]
    assert pipe.labels["geyser"] == 974
    assert "crane" not in pipe.labels  # two classes
    pipe.save_pretrained(tmp_path / "saved")
    assert DiTPipeline.from_pretrained(tmp_path / "saved").labels == pipe.labels


def test_other_names_win_and_other_numbers_of_classes_have_none(checkpoint):
    assert DiTPipeline.from_pretrained(checkpoint(10), vae=tiny_vae(), num_attention_heads=4).labels == {}
    own = DiTPipeline.from_pretrained(checkpoint(1000), vae=tiny_vae(), num_attention_heads=4, id2label={3: "mine"})
    assert own.labels == {"mine": 3}
    none = DiTPipeline.from_pretrained(checkpoint(1000), vae=tiny_vae(), num_attention_heads=4, id2label={})
    assert none.labels == {}
