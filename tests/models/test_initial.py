"""Starting from the weights of a ViT and a BERT."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpro.errors import InputError
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.clip_prompter import load_clip
from alpro.models.initial import load_bert, load_vit, text_sizes, video_sizes
from tests.conftest import REVISION, one_line

VIDEO = {
    "image_size": 32,
    "patch_size": 8,
    "frames": 3,
    "width": 64,
    "depth": 2,
    "heads": 2,
    "drop_path": 0.0,
}
TEXT = {
    "vocab_size": 40,
    "width": 64,
    "depth": 4,
    "fusion_layer": 2,
    "heads": 2,
    "max_length": 16,
    "dropout": 0.0,
}


def model_of(**video) -> Alpro:
    torch.manual_seed(0)
    text = TEXT | {"width": video.get("width", 64)}
    sizes = {"video": VIDEO | video, "text": text, "embed_dim": 16}
    return Alpro(ModelConfig.model_validate(sizes), entities=5).eval()


def timm_vit(name: str):
    """A small random ViT of timm with the components of a name."""
    import timm

    torch.manual_seed(1)
    vit = timm.create_model(name, img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vit.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(2)
    sizes = {"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = BertForMaskedLM(
        BertConfig(**sizes, intermediate_size=256, max_position_embeddings=16)
    ).eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder


VITS = {
    "vit_base_patch16_224": {},
    "vit_base_patch14_dinov2": {},
    "vit_base_patch16_clip_224": {"pre_norm": True},
    "vit_base_patch16_clip_quickgelu_224": {"pre_norm": True, "activation": "quick_gelu"},
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
    torch.testing.assert_close(tokens, expected, atol=2e-4, rtol=1e-3)
    for block in model.video_encoder.blocks:
        assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)
        assert torch.equal(block.temporal_norm1.weight, block.norm1.weight)
        assert not block.temporal_fc.weight.any()
    larger = model_of(image_size=48, **own)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    load_vit(larger, str(tmp_path / "vit.pt"))
    assert torch.equal(larger.video_encoder.pos_embed[:, 0], vit.pos_embed[:, 0])


def test_bert_is_split_into_text_and_multimodal_encoder(model, bert):
    reference, folder = bert
    load_bert(model, str(folder))
    ids = torch.randint(5, 40, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        text = model.encode_text(ids, mask)
        # Without any video token the multimodal encoder is BERT's upper half.
        fused = model.fuse(text, mask, torch.zeros(2, 0, 64))
        expected = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(
        text[mask == 1], expected.hidden_states[2][mask == 1], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        fused[mask == 1], expected.hidden_states[4][mask == 1], atol=1e-5, rtol=1e-4
    )
    scores = model.mlm_scores(fused)
    torch.testing.assert_close(scores[mask == 1], expected.logits[mask == 1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"set the sizes in \[model\]"):
        load_bert(model_of(width=32), str(folder))
    deeper = ModelConfig.model_validate(
        {"video": VIDEO, "text": TEXT | {"depth": 5}, "embed_dim": 16}
    )
    with pytest.raises(
        ValueError, match=r"weights are missing, such as multimodal_encoder\.layers\.2"
    ):
        load_bert(Alpro(deeper), str(folder))
    expected = {
        "width": 64,
        "depth": 4,
        "fusion_layer": 2,
        "heads": 2,
        "mlp_ratio": 4.0,
        "max_length": 16,
    }
    assert text_sizes(str(folder)) == expected


def test_a_bert_without_its_mlm_head_leaves_the_models_own(model, bert, tmp_path):
    bert[0].bert.save_pretrained(tmp_path)
    own = {
        key: value.clone()
        for key, value in model.mlm_head.state_dict().items()
        if "decoder.weight" not in key
    }
    load_bert(model, str(tmp_path))
    assert all(torch.equal(model.mlm_head.state_dict()[key], value) for key, value in own.items())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="not readable as a BERT"):
        load_bert(model, str(tmp_path))


@pytest.fixture
def model() -> Alpro:
    return model_of()


OTHERS = (
    "blocks.0.ls3.gamma",
    "blocks.1.attn.q_norm.weight",
    "reg_token",
    "time_embed",
    "blocks.0.temporal_fc.weight",
)


def test_a_vit_that_does_not_fit_is_refused_in_one_line(model, tmp_path):
    own = model.video_encoder.state_dict()
    plain = {
        key: value.clone()
        for key, value in own.items()
        if "temporal_" not in key and key != "time_embed"
    }
    plain |= {"head.weight": torch.zeros(7, 64), "fc_norm.bias": torch.zeros(64)}
    torch.save(plain, tmp_path / "plain.pt")
    load_vit(model, str(tmp_path / "plain.pt"))  # its head is ignored
    for more, sizes, message in (
        *(
            ({key: torch.zeros(64)}, {}, f"is not a plain ViT of 2 blocks: it has {key}")
            for key in OTHERS
        ),
        # Distilled: two tokens before the patches; without [CLS]; none.
        *(
            ({"pos_embed": torch.zeros(1, n, 64)}, {}, f"{n} positions, which are not")
            for n in (18, 16, 1)
        ),
        *(
            ({"pos_embed": torch.zeros(s)}, {}, f"pos_embed is {s}, not (1, 17, 64)")
            for s in ((1, 0, 64), (64,), ())
        ),
        ({"norm.bias": torch.full((64,), torch.nan)}, {}, "not finite"),
        ({}, {"width": 32}, "set the sizes in [model]"),
        ({}, {"depth": 3}, "weights are missing, such as blocks.2."),
    ):
        torch.save(plain | more, tmp_path / "vit.pt")
        with one_line("vit = ", message, of=ValueError):
            load_vit(model_of(**sizes), str(tmp_path / "vit.pt"))


def test_unavailable_weights_are_a_one_line_error_with_instructions(model, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # the variable is read at import
    for load_one, name in (
        (load_vit, "vit_base_patch16_224.orig_in21k_ft_in1k"),
        (load_bert, "nobody/no-such-bert"),
        (load_vit, "nobody/no-such-clip"),
    ):
        with one_line("where there is a network", of=(ValueError, InputError)):
            load_one(model, name)
    with pytest.raises(ValueError, match="add timm's tag"):
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
        assert torch.equal(
            model.video_encoder.blocks[5].mlp.fc2.weight, vit.blocks[5].mlp.fc2.weight
        )
    with one_line("test_vit.r160_in1k@1", "where there is a network", of=ValueError):
        load_vit(model, "test_vit.r160_in1k@1")


def tower(folder: Path, **other) -> Alpro:
    """A model of the sizes of a CLIP's vision tower."""
    return model_of(**{"image_size": 32} | video_sizes(str(folder)) | other)


def test_the_video_encoder_starts_as_the_vision_tower_of_a_clip(clip_folders):
    model = tower(clip_folders["clip"])
    clip = load_clip(str(clip_folders["clip"])).model.clip.vision_model
    load_vit(model, str(clip_folders["clip"]))
    frames = torch.randn(2, 3, 32, 32)
    states = list[torch.Tensor]()
    for block in model.video_encoder.blocks:
        block.register_forward_hook(lambda _, args, out: states.append(out))
    with torch.no_grad():
        tokens = model.encode_video(
            frames[:, None]
        )  # a clip of one frame: [CLS] is not averaged over frames
        expected = clip(frames, output_hidden_states=True)
        last = clip.post_layernorm(expected.last_hidden_state)
        still = model.encode_video(frames[:, None].expand(-1, 3, -1, -1, -1))
    for state, theirs in zip(states[:2], expected.hidden_states[1:], strict=True):
        torch.testing.assert_close(state, theirs, atol=1e-5, rtol=0)
    for actual in (tokens, still):
        torch.testing.assert_close(actual, last, atol=1e-5, rtol=0)


@pytest.mark.parametrize("other", [{"heads": 4}, {"activation": "quick_gelu"}])
def test_what_no_shape_shows_is_compared(other, bert, monkeypatch):
    vit = timm_vit("vit_base_patch16_224")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: vit)
    load_vit(model_of(), "vit_base_patch16_224.tag")
    with pytest.raises(ValueError, match=f"model.video.{next(iter(other))} is "):
        load_vit(model_of(**other), "vit_base_patch16_224.tag")
    vit.rope = torch.nn.Identity()
    with pytest.raises(ValueError, match="it has rotary positions"):
        load_vit(model_of(), "vit_base_patch16_224.tag")
    model = model_of()
    model.config = model.config.model_copy(
        update={"text": model.config.text.model_copy(update={"heads": 4})}
    )
    with pytest.raises(ValueError, match=r"model\.text\.heads is 4; set it to 2"):
        load_bert(model, str(bert[1]))


def test_a_tower_that_the_video_encoder_cannot_hold_exactly_is_refused(clip_folders, tmp_path):
    clip = str(clip_folders["clip"])
    for key, value in {"activation": "gelu", "pre_norm": False, "heads": 4}.items():
        with pytest.raises(ValueError, match=rf"model\.video\.{key} is {value}; set it to "):
            load_vit(tower(clip, **{key: value}), clip)
    values = json.loads((clip_folders["clip"] / "config.json").read_text())
    values["vision_config"]["layer_norm_eps"] = 1e-6
    other = shutil.copytree(clip, tmp_path / "clip")
    (other / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="epsilon of its layer norms is 1e-06, not 1e-05"):
        load_vit(tower(clip), str(other))
    trained = load_clip(clip)
    trained.model.add_temporal(3)
    trained.save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match="it has the temporal attention of train_prompter"):
        load_vit(tower(clip), str(tmp_path / "trained"))


def test_another_model_of_transformers_is_refused_in_one_line(model, clip_folders, tmp_path):
    """A RoBERTa has other special tokens, and its positions start at 2; a SigLIP has no [CLS]."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    (tmp_path / "config.json").write_text("[")
    for name in (str(tmp_path), "no/such-bert", ""):  # no folder of a model
        assert text_sizes(name) == video_sizes(name) == {}
    sizes = {"vocab_size": 30, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    other = RobertaForMaskedLM(
        RobertaConfig(**sizes, intermediate_size=256, max_position_embeddings=18)
    )
    other.save_pretrained(tmp_path)
    siglip = str(clip_folders["siglip"])
    for read in (
        lambda: text_sizes(str(tmp_path)),
        lambda: load_bert(model, str(tmp_path)),
    ):  # before decoding, too
        with pytest.raises(
            InputError, match="this is a roberta; of transformers only a bert is supported"
        ):
            read()
    for read in (lambda: video_sizes(siglip), lambda: load_vit(model, siglip)):
        with pytest.raises(
            InputError, match="this is a siglip; of transformers only a clip is supported"
        ):
            read()
