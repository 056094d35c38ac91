"""Export a model for transformers and sentence-transformers.

They load the folder with `trust_remote_code=True`, without this package.
"""

import importlib
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from alpro.errors import InputError
from alpro.files import new_folder, use_default_mode
from alpro.inference.hub import configuration_alpro, modeling_alpro, processing_alpro
from alpro.inference.model import Model
from alpro.models.alpro import Prompter

OWN_IMPORT = re.compile(r"^from (alpro\.[\w.]+) import", re.MULTILINE)
# transformers copies only the modules of a folder: the text of a data file becomes part of them.
OWN_DATA = re.compile(
    r'Path\(__file__\)\.with_name\("([\w.]+)"\)\.read_text\("utf-8"\)'
)
# Files that tell sentence-transformers (version 5.4 or later) which methods of the model embed texts,
# images and videos.
SENTENCE_TRANSFORMERS = {
    "modules.json": """[
 {
  "idx": 0,
  "name": "0",
  "path": "",
  "type": "sentence_transformers.base.modules.transformer.Transformer"
 }
]
""",
    "sentence_bert_config.json": """{
 "transformer_task": "feature-extraction",
 "modality_config": {
  "text": {
   "method": "get_text_features",
   "method_output_name": null
  },
  "image": {
   "method": "get_video_features",
   "method_output_name": null
  },
  "video": {
   "method": "get_video_features",
   "method_output_name": null
  }
 },
 "module_output_name": "sentence_embedding"
}
""",
    "config_sentence_transformers.json": """{
 "model_type": "SentenceTransformer",
 "similarity_fn_name": "cosine"
}
""",
}


def export(model: Model, folder: Path, card: str) -> None:
    """Write a model to a new folder that transformers loads.

    Args:
        card: Text of README.md.

    Raises:
        InputError: If the folder exists, or the model is a CLIP or SigLIP, whose folder transformers
            loads as it is.
    """
    source = model.folder
    if not isinstance(source.model, Prompter):
        raise InputError(
            "a CLIP or SigLIP is not exported: transformers loads the folder model/ of its artifact"
        )
    logging.disable_progress_bar()  # transformers writes its bars into log files, too

    with new_folder(folder) as building:
        exported = modeling_alpro.AlproModel(configuration(model))
        exported.model.load_state_dict(source.model.state_dict())
        exported.eval().save_pretrained(building)
        use_default_mode(building / "model.safetensors")

        make_processor(model).save_pretrained(building)

        # The installed package has the license; there may be no checkout. What pip leaves in a checkout
        # is found, too, and has none.
        installed = metadata.distributions(name="alpro-pipeline")
        licenses = [found.read_text("licenses/LICENSE") for found in installed]
        texts = {"README.md": card, "LICENSE": next(filter(None, licenses))}
        for name, text in (texts | SENTENCE_TRANSFORMERS | exported_code()).items():
            (building / name).write_text(text, "utf-8")


def make_processor(model: Model) -> processing_alpro.AlproProcessor:
    """Return what makes the inputs of the exported model."""
    source = model.folder
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=source.tokenizer,
        model_max_length=source.preprocessing.max_text_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    video = source.model.config.video
    processor = processing_alpro.AlproProcessor(
        tokenizer, video.image_size, video.frames, **source.preprocessing.model_dump()
    )
    processor.auto_map = {"AutoProcessor": "processing_alpro.AlproProcessor"}
    return processor


def configuration(model: Model) -> configuration_alpro.AlproConfig:
    """Return the configuration of the exported model; `auto_map` names its classes."""
    source = model.folder
    return configuration_alpro.AlproConfig(
        task=source.task,
        sizes=source.model.config.model_dump(mode="json"),
        **source.preprocessing.model_dump(mode="json"),
        entities=source.entities,
        answers=source.answers,
        auto_map={
            "AutoConfig": "configuration_alpro.AlproConfig",
            "AutoModel": "modeling_alpro.AlproModel",
            "AutoProcessor": "processing_alpro.AlproProcessor",
        },
    )


def exported_code() -> dict[str, str]:
    """Return the source of each exported module by file name, with imports relative to the folder.

    These are the classes, and the modules of this package that they import.
    """
    sources: dict[str, str] = {}
    pending: list[ModuleType] = [configuration_alpro, modeling_alpro, processing_alpro]
    while pending:
        module = pending.pop()
        assert module.__file__ is not None
        path = Path(module.__file__)
        if path.name in sources:
            continue
        source = path.read_text("utf-8")
        for data in OWN_DATA.finditer(source):
            text = path.with_name(data[1]).read_text("utf-8")
            source = source.replace(data[0], repr(text))
        pending += [
            importlib.import_module(other) for other in OWN_IMPORT.findall(source)
        ]
        # transformers loads modules of a folder without installing them.
        sources[path.name] = OWN_IMPORT.sub(
            lambda match: f"from .{match[1].rpartition('.')[2]} import", source
        )
    return sources
