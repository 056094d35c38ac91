"""Whether a caption names an entity, from its word pieces, without waiting for the device."""

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from alpro.models.word_pieces import WordPieces

END, ANY, UNKNOWN = -1, -2, -3  # instead of a piece: the word ends here, anything, a word without pieces


class NamedEntities(nn.Module):
    """The word pieces of entities. forward(text (B, L), entity (B,)) -> (B,): the text names the entity.

    As in `true_entities`, the word itself counts, and no other form of it.
    """

    pieces: Tensor  # (M, P)
    continues: Tensor  # (vocabulary,) whether a piece continues a word

    def __init__(self, tokenizer: Tokenizer, entities: list[str]):
        super().__init__()
        words, unknown = WordPieces(tokenizer), tokenizer.token_to_id("[UNK]")
        rows = [one.ids for one in words.tokenizer.encode_batch(entities, add_special_tokens=False)]
        longest = max(len(row) for row in rows)
        table = torch.full((len(rows), longest + 1), ANY)
        for i, row in enumerate(rows):
            known = row and unknown not in row
            table[i, : len(row) + 1] = torch.tensor([*row, END] if known else [UNKNOWN] * (len(row) + 1))
        continues = [(words.tokenizer.id_to_token(i) or "").startswith("##") for i in range(words.size)]
        self.register_buffer("pieces", table, persistent=False)
        self.register_buffer("continues", torch.tensor(continues), persistent=False)

    def forward(self, text: Tensor, entity: Tensor) -> Tensor:
        pieces = self.pieces[entity][:, None]  # (B, 1, P)
        at = F.pad(text, (0, pieces.shape[2] - 1)).unfold(1, pieces.shape[2], 1)  # (B, L, P); [PAD] is piece 0
        ends = (pieces == END) & ~self.continues[at]
        return ((at == pieces) | (pieces == ANY) | ends).all(2).any(1)
