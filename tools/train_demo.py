"""Trains the bundled models and writes them as Hugging Face Llama folders."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Threads that spin while they wait make a shared machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

from tools.demo_model import (
    NO_TARGET,
    NORM_EPSILON,
    POSITIONS_MAX,
    ROPE_THETA,
    Batch,
    Llama,
    Size,
)
from tools.demo_tasks import FAMILIES, Example, examples

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
VOCABULARY_SIZE = 800
TOKENIZER_SEED = 11
TOKENIZER_EXAMPLES_PER_FAMILY = 3000
# Digits and capitals stand alone, so that the model sees what a sum or a reversal is about.
PIECES = r" ?[A-Z]| ?[0-9]| ?[a-z]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
ROW_TOKENS = 128
WARMUP_SHARE = 0.02
GRADIENT_NORM_MAX = 1.0
WEIGHT_DECAY = 0.05
REPORT_STEPS = 50
FILE_MODE = 0o644
CHECKPOINT_STEPS = 500


# A mix counts tokens, not examples. The two lesser models learn less, and each less of
# something else, so that the three disagree where they are wrong.
SIZES: Mapping[str, Size] = {
    "small": Size(
        64, 3, 2, 1, 176, 32, 2400, 6e-3, 3,
        {"addition": 0.4, "sorting": 1, "reversing": 2, "counting": 9, "look-up": 9,
         "english": 4, "listing": 4},
    ),
    "medium": Size(
        128, 5, 4, 2, 344, 32, 1400, 4e-3, 2,
        {"addition": 6, "sorting": 2, "reversing": 2, "counting": 1, "look-up": 10,
         "english": 3, "listing": 4},
    ),
    "large": Size(
        192, 8, 6, 3, 512, 32, 2270, 3e-3, 1,
        {"addition": 4, "sorting": 6, "reversing": 3, "counting": 6, "look-up": 6,
         "english": 3, "listing": 3},
    ),
}  # fmt: skip


def train_tokenizer() -> Tokenizer:
    """One tokenizer for all sizes, so that the small model can draft for the large one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    chance = random.Random(TOKENIZER_SEED)
    texts = []
    for family in FAMILIES:
        source = examples(family, chance, held_out=False)
        chosen = [next(source) for _ in range(TOKENIZER_EXAMPLES_PER_FAMILY)]
        texts += [example.prompt + example.answer for example in chosen]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


@dataclass(frozen=True)
class Piece:
    """One tokenised example."""

    tokens: list[int]
    prompt_tokens: int


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the special tokens, by the names that configurations use."""
    vocabulary = tokenizer.get_vocab()
    return {
        "bos_token_id": vocabulary[BEGIN],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[PAD],
    }


class Packer:
    """Draws examples by the mix and packs them into full rows."""

    def __init__(self, tokenizer: Tokenizer, size: Size) -> None:
        self.tokenizer = tokenizer
        self.end: int = special_ids(tokenizer)["eos_token_id"]
        self.chance = random.Random(size.seed)
        self.rows = size.rows
        self.sources: dict[str, Iterator[Example]] = {
            family: examples(family, self.chance, held_out=False) for family in size.mix
        }
        self.spent = dict.fromkeys(size.mix, 0.0)
        self.mix = size.mix
        self.waiting: list[Piece] = []

    def draw(self) -> Piece:
        """The next example of the family that is furthest behind its share."""
        family = min(self.spent, key=lambda name: self.spent[name])
        example = next(self.sources[family])
        prompt = self.tokenizer.encode(example.prompt).ids
        answer = self.tokenizer.encode(example.answer, add_special_tokens=False).ids
        tokens = [*prompt, *answer, self.end]
        self.spent[family] += len(tokens) / self.mix[family]
        return Piece(tokens, len(prompt))

    def row(self) -> list[Piece]:
        """Pieces that fill one row, the longest that still fits first."""
        chosen: list[Piece] = []
        free = ROW_TOKENS + 1
        while len(self.waiting) < 64:
            self.waiting.append(self.draw())
        self.chance.shuffle(self.waiting)
        while True:
            fitting = [piece for piece in self.waiting if len(piece.tokens) - 1 < free]
            if not fitting:
                return chosen
            piece = fitting[0] if free > 48 else max(fitting, key=lambda one: len(one.tokens))
            self.waiting.remove(piece)
            chosen.append(piece)
            free -= len(piece.tokens) - 1

    def batch(self) -> Batch:
        """The rows of one step."""
        shape = (self.rows, ROW_TOKENS)
        tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
        targets = torch.full(shape, NO_TARGET)
        weights, owner = torch.zeros(shape), torch.full(shape, -1)
        for index in range(self.rows):
            start = 0
            for number, piece in enumerate(self.row()):
                length = len(piece.tokens) - 1
                span = slice(start, start + length)
                tokens[index, span] = torch.tensor(piece.tokens[:-1])
                positions[index, span] = torch.arange(length)
                owner[index, span] = number
                asked = slice(start + piece.prompt_tokens - 1, start + length)
                targets[index, asked] = torch.tensor(piece.tokens[piece.prompt_tokens :])
                # The square root keeps a long story from outweighing a short sum; to end
                # at the right place is one decision, however long the answer was.
                weights[index, asked] = (len(piece.tokens) - piece.prompt_tokens) ** -0.5
                start += length
                weights[index, start - 1] = 1.0
        same = owner.unsqueeze(2) == owner.unsqueeze(1)
        seen = same & torch.ones(ROW_TOKENS, ROW_TOKENS).tril().bool()
        mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).unsqueeze(1)
        return Batch(tokens, positions, targets, weights, mask)


def learning_share(progress: float) -> float:
    """Share of the full learning rate: a short rise, then a cosine down to zero."""
    if progress < WARMUP_SHARE:
        return progress / WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))


def make_optimizers(model: Llama, size: Size) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embeddings and the norms."""
    matrices = [one for one in model.layers.parameters() if one.dim() == 2]
    inside = {id(one) for one in matrices}
    others = [one for one in model.parameters() if id(one) not in inside]
    return [
        torch.optim.Muon(
            matrices,
            lr=size.learning_rate,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def config_of(size: Size, tokenizer: Tokenizer) -> dict[str, object]:
    """What `config.json` holds."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "head_dim": size.head,
        "hidden_act": "silu",
        "max_position_embeddings": POSITIONS_MAX,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY_SIZE,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        **special_ids(tokenizer),
    }


def save(model: Llama, size: Size, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a folder that any reader of Hugging Face checkpoints loads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
    }
    file = folder / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(FILE_MODE)  # the writer leaves it readable by its owner alone
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    files: dict[str, dict[str, object]] = {
        "config.json": config_of(size, tokenizer),
        "generation_config.json": {"do_sample": False, **special_ids(tokenizer)},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": POSITIONS_MAX,
            "chat_template": "{{ bos_token }}{{ messages[-1]['content'] | trim }}",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def train(name: str, size: Size, folder: Path, minutes: float) -> None:
    """Trains one size; `minutes` bounds the time, and the schedule shortens to fit."""
    torch.manual_seed(size.seed)
    tokenizer = train_tokenizer()
    model, packer = Llama(size, VOCABULARY_SIZE), Packer(tokenizer, size)
    optimizers = make_optimizers(model, size)
    start_s, total, step, progress = time.monotonic(), 0.0, 0, 0.0
    while progress < 1:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = size.learning_rate * learning_share(progress)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(packer.batch())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total, step = total + loss.item(), step + 1
        elapsed_s = time.monotonic() - start_s
        progress = max(step / size.steps, elapsed_s / (60 * minutes))
        if step % REPORT_STEPS == 0:
            mean, total = total / REPORT_STEPS, 0.0
            print(f"{name} {step} {progress:.1%} loss {mean:.4f} {elapsed_s:.0f} s", flush=True)
        if step % CHECKPOINT_STEPS == 0:
            save(model, size, tokenizer, folder)
    save(model, size, tokenizer, folder)
    print(f"{name} done: {step} steps, {time.monotonic() - start_s:.0f} s", flush=True)


def main() -> None:
    """Reads the command line and trains the sizes it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", default=list(SIZES), metavar="SIZE")
    parser.add_argument("--out", type=Path, default=Path("gennode/models"))
    parser.add_argument("--minutes", type=float, default=math.inf, help="bound for each size")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.sizes:
        train(name, SIZES[name], arguments.out / f"gennode-{name}", arguments.minutes)


if __name__ == "__main__":
    main()
