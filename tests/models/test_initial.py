"""Starting from the weights of a ViT and a BERT, whose file has the other name of a tied bias."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpro.errors import InputError
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import load_clip_model
from alpro.models.initial import encoder_sizes, load_bert, load_vit
from alpro.models.pretrained import read_model_config
from tests.clip_models import REVISION
from tests.conftest import one_line
from tests.models.conftest import near

VIDEO = {
    "image_size": 32,
    "patch_size": 8,
    "frames": 3,
    "width": 64,
    "depth": 2,
    "heads": 2,
}
TEXT = {
    "vocab_size": 40,
    "width": 64,
    "depth": 4,
    "fusion_layer": 2,
    "heads": 2,
    "max_length": 16,
}


def model_of(**video):
    torch.manual_seed(0)
    text = TEXT | {"width": video.get("width", 64)}
    sizes = {"video": VIDEO | video, "text": text, "embed_dim": 16}
    return Alpro(ModelConfig.model_validate(sizes), entities=5).eval()


def timm_vit(name):
    """A small random ViT of timm with the components of a name."""
    import timm

    torch.manual_seed(1)
    vit = timm.create_model(
        name, img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vit.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=16,
    )
    model = BertForMaskedLM(config).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.decoder.bias"] = weights.pop("cls.predictions.bias")
    save_file(weights, folder / "model.safetensors")
    return model, folder


VITS = {
    "vit_base_patch16_224": {},
    "vit_base_patch14_dinov2": {},
    "vit_base_patch16_clip_224": {"pre_norm": True},
    "vit_base_patch16_clip_quickgelu_224": {
        "pre_norm": True,
        "activation": "quick_gelu",
    },
}


@pytest.mark.parametrize(("name", "own"), VITS.items())
def test_the_video_encoder_starts_as_the_vit_on_each_frame(name, own, tmp_path):
    vit = timm_vit(name)
    model = model_of(**own)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")

    load_vit(model, str(tmp_path / "vit.safetensors"))

    frames = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        tokens = model.encode_video(frames[:, :1].expand(-1, 3, -1, -1, -1))
        expected = vit.forward_features(frames[:, 0])
    near(tokens, expected, atol=2e-4)
    for block in model.video_encoder.blocks:
        assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(block.temporal_norm1.weight, block.norm1.weight)
        assert not block.temporal_fc.weight.any()


@torch.no_grad()
def test_bert_is_split_into_text_and_multimodal_encoder(model, bert):
    reference, folder = bert
    ids = torch.randint(5, 40, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0

    load_bert(model, str(folder))

    text = model.encode_text(ids, mask)
    # Without any video token the multimodal encoder is BERT's upper half.
    fused = model.fuse(text, mask, torch.zeros(2, 0, 64))
    scores = model.mlm_scores(fused)
    expected = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    real = mask == 1
    near(text[real], expected.hidden_states[2][real], atol=1e-4)
    near(fused[real], expected.hidden_states[4][real], atol=1e-4)
    near(scores[real], expected.logits[real], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"video": {"width": 32}, "text": {"width": 32}},
            "model.text.width is 32; set it to 64",
        ),
        (
            {"text": {"depth": 5}},
            "model.text.depth is 5; set it to 4",
        ),
        ({"text": {"heads": 4}}, "model.text.heads is 4; set it to 2"),
    ],
)
def test_a_bert_of_other_sizes_is_refused_in_one_line(changes, message, bert):
    sizes = {"video": VIDEO, "text": TEXT, "embed_dim": 16}
    for part, values in changes.items():
        sizes[part] = sizes[part] | values
    model = Alpro(ModelConfig.model_validate(sizes))

    with one_line("bert = ", message, of=ValueError):
        load_bert(model, str(bert[1]))


def test_a_bert_without_its_mlm_head_leaves_the_models_own(model, bert, tmp_path):
    """Also with a head of another task, and in a pickle of 2018, which has other names of norms."""
    bert[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {"pooler.dense.bias": torch.zeros(64)}
    for key, value in bert[0].bert.state_dict().items():
        old = key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
        weights[old] = value
    torch.save(weights, tmp_path / "pytorch_model.bin")
    before = deepcopy(model.mlm_head.state_dict())

    load_bert(model, str(tmp_path))

    near(model.mlm_head.state_dict(), before, atol=0)
    norm = bert[0].bert.embeddings.LayerNorm
    assert torch.equal(model.text_encoder.embeddings.norm.weight, norm.weight)


def test_a_bert_without_a_weight_of_its_body_is_refused(model, bert, tmp_path):
    bert[0].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.3.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})

    with one_line("Missing", "layers.1.mlp.fc2.weight", of=ValueError):
        load_bert(model, str(tmp_path))


@pytest.fixture
def model():
    return model_of()


@pytest.mark.parametrize(
    ("more", "sizes", "message"),
    [
        (
            {"time_embed": torch.zeros(64)},
            {},
            "size mismatch for time_embed",
        ),
        (
            {"reg_token": torch.zeros(64)},
            {},
            "reg_token",
        ),
        # Distilled.
        (
            {"pos_embed": torch.zeros(1, 18, 64)},
            {},
            "pos_embed is (1, 18, 64), not [CLS] and a square grid",
        ),
        ({"pos_embed": torch.zeros(64)}, {}, "pos_embed is (64,), not [CLS]"),
        ({"norm.bias": torch.full((64,), torch.nan)}, {}, "not finite"),
        ({}, {"width": 32}, "[model] must have its sizes"),
        ({}, {"depth": 3}, 'Missing key(s) in state_dict: "blocks.2'),
    ],
)
def test_a_vit_that_does_not_fit_is_refused_in_one_line(
    more, sizes, message, model, tmp_path
):
    # Ignored.
    vit = {"head.weight": torch.zeros(7, 64), "fc_norm.bias": torch.zeros(64)}
    for key, value in model.video_encoder.state_dict().items():
        if "temporal_" not in key and key != "time_embed":
            vit[key] = value
    torch.save(vit, tmp_path / "vit.pt")
    load_vit(model, str(tmp_path / "vit.pt"))

    torch.save(vit | more, tmp_path / "vit.pt")
    with one_line("vit = ", message, of=ValueError):
        load_vit(model_of(**sizes), str(tmp_path / "vit.pt"))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_vit, "vit_base_patch16_224.orig_in21k_ft_in1k"),
        (load_bert, "nobody/no-such-bert"),
        (load_vit, "nobody/no-such-clip"),
    ],
)
def test_unavailable_weights_are_a_one_line_error_with_instructions(
    load, name, model, monkeypatch
):
    # The variable is read at import.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with one_line("where there is a network", of=(ValueError, InputError)):
        load(model, name)


def test_a_vit_of_timm_needs_its_tag(model):
    with one_line("add timm's tag", of=ValueError):
        load_vit(model, "vit_base_patch16_224")


def test_a_vit_of_timm_may_have_a_revision(hub, tmp_path):
    import timm

    vit = timm.create_model("test_vit")
    (tmp_path / "vit").mkdir()
    save_file(vit.state_dict(), tmp_path / "vit" / "model.safetensors")
    hub(tmp_path / "vit", "timm/test_vit.r160_in1k")

    for name in ("test_vit.r160_in1k", f"test_vit.r160_in1k@{REVISION}"):
        model = model_of(image_size=160, patch_size=16, depth=6, mlp_ratio=3)
        load_vit(model, name)
        loaded = model.video_encoder.blocks[5].mlp.fc2.weight
        assert torch.equal(loaded, vit.blocks[5].mlp.fc2.weight)
    with one_line("test_vit.r160_in1k@1", "where there is a network", of=ValueError):
        load_vit(model, "test_vit.r160_in1k@1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert", "hidden_size": "x"}, "not readable as a bert"),
        ({"hidden_size": 8}, "not readable as a bert"),
        ({"model_type": "roberta"}, "this is a roberta, not a bert"),
        ({"model_type": "bert", "hidden_act": "relu"}, "its hidden_act is not gelu"),
    ],
)
def test_a_folder_of_another_model_or_without_valid_sizes_is_refused(
    values, message, model, tmp_path
):
    """A RoBERTa has other special tokens, and its positions start at 2."""
    (tmp_path / "config.json").write_text(json.dumps(values))

    with one_line("bert = ", message):
        load_bert(model, str(tmp_path))


def test_a_siglip_is_no_vit(model, clip_folders):
    """It has no [CLS]."""
    with one_line("this is a siglip, not a clip"):
        load_vit(model, str(clip_folders["siglip"]))


def tower(folder, **other):
    """A model of the sizes of a CLIP's vision tower."""
    config = read_model_config("vit", str(folder), ("clip",))
    return model_of(**{"image_size": 32} | encoder_sizes("vit", config) | other)


@pytest.mark.parametrize("kind", ["clip", "pickled"])
@torch.no_grad()
def test_the_video_encoder_starts_as_the_vision_tower_of_a_clip(kind, clip_folders):
    clip = load_clip_model(str(clip_folders["clip"])).model.clip.vision_model
    model = tower(clip_folders["clip"])
    frames = torch.randn(2, 3, 32, 32)
    states = list[torch.Tensor]()
    for block in model.video_encoder.blocks:
        block.register_forward_hook(lambda _, args, out: states.append(out))

    load_vit(model, str(clip_folders[kind]))

    expected = clip(frames, output_hidden_states=True)
    # A clip of one frame: [CLS] is not averaged over frames.
    tokens = model.encode_video(frames[:, None])
    for state, theirs in zip(states, expected.hidden_states[1:], strict=True):
        near(state, theirs)
    still = model.encode_video(frames[:, None].expand(-1, 3, -1, -1, -1))
    last = clip.post_layernorm(expected.last_hidden_state)
    near(tokens, last)
    near(still, last)


@pytest.fixture
def timm_model(monkeypatch):
    """The ViT that timm gives under any name."""
    vit = timm_vit("vit_base_patch16_224")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: vit)
    return vit


@pytest.mark.usefixtures("timm_model")
@pytest.mark.parametrize("other", [{"heads": 4}, {"activation": "quick_gelu"}])
def test_what_no_shape_of_a_vit_shows_is_compared(other):
    load_vit(model_of(), "vit_base_patch16_224.tag")

    with pytest.raises(ValueError, match=r"model.video.(heads|activation) is "):
        load_vit(model_of(**other), "vit_base_patch16_224.tag")


def test_rotary_positions_are_refused(timm_model):
    timm_model.rope = torch.nn.Identity()

    with pytest.raises(ValueError, match="it has rotary positions"):
        load_vit(model_of(), "vit_base_patch16_224.tag")


@pytest.mark.parametrize(
    "other",
    [
        {"activation": "gelu"},
        {"pre_norm": False},
        {"heads": 4},
    ],
)
def test_a_tower_that_the_video_encoder_cannot_hold_exactly_is_refused(
    other, clip_folders
):
    clip = str(clip_folders["clip"])
    ((key, value),) = other.items()

    with pytest.raises(
        ValueError, match=rf"model\.video\.{key} is {value}; set it to "
    ):
        load_vit(tower(clip, **other), clip)


def test_a_tower_with_temporal_attention_is_refused(clip_folders, tmp_path):
    trained = load_clip_model(str(clip_folders["clip"]))
    trained.model.add_temporal(3)
    trained.save_pretrained(tmp_path)

    with pytest.raises(
        ValueError, match="it has the temporal attention of train_prompter"
    ):
        load_vit(tower(clip_folders["clip"]), str(tmp_path))
